# SPDX-License-Identifier: Apache-2.0
"""VMamba: stages of visual state space blocks over a shrinking map (arXiv:2401.10166). Maps are channel-last."""

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from vlmamba.layers.ss2d import SS2D, reset_convolution
from vlmamba.models.modeling_utils import KernelPreTrainedModel
from vlmamba.models.vmamba.configuration_vmamba import VMambaConfig


class MapBatchNorm(nn.BatchNorm2d):
    """Batch norm of a channel-last map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _norm(config: VMambaConfig, channels: int) -> nn.Module:
    kind = {"layer_norm": nn.LayerNorm, "batch_norm": MapBatchNorm}[config.norm_type]
    return kind(channels, eps=config.layer_norm_epsilon)


class NormedConvolution(nn.Module):
    """A strided convolution of a channel-last map, and a norm."""

    def __init__(self, inputs: int, outputs: int, side: int, step: int, padding: int, norm: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, step, padding)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Every 2 x 2 positions to one of `outputs` channels; odd sides get a row or column of zeros."""

    def __init__(self, config: VMambaConfig, inputs: int, outputs: int):
        super().__init__()
        self.norm = _norm(config, 4 * inputs)
        self.reduction = nn.Linear(4 * inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


class VMambaEmbeddings(nn.Module):
    """Images to the first map, with positions where there are any."""

    def __init__(self, config: VMambaConfig):
        super().__init__()
        self.config = config
        width, size = config.hidden_sizes[0], config.patch_size
        if config.patch_embedding == "single":
            sizes = [(config.num_channels, width, size, size, 0)]
        else:
            step = size // 2
            sizes = [(i, o, step + 1, step, 1) for i, o in ((config.num_channels, width // 2), (width // 2, width))]
        norms = (_norm(config, s[1]) if config.patch_norm else nn.Identity() for s in sizes)
        self.convolutions = nn.ModuleList(NormedConvolution(*s, norm) for s, norm in zip(sizes, norms, strict=True))
        self.act = nn.GELU()
        self.position_embeddings = None
        if config.use_position_embeddings:
            self.position_embeddings = nn.Parameter(torch.empty(1, *config.grid_size, width))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` -> the first stage's map `[B, h, w, hidden_sizes[0]]`."""
        self._check(pixel_values)
        x = pixel_values.to(self.convolutions[0].conv.weight.dtype).permute(0, 2, 3, 1)
        for i, convolution in enumerate(self.convolutions):
            x = convolution(self.act(x) if i else x)
        return x if self.position_embeddings is None else x + self._positions(x.shape[1:3])

    def _check(self, pixel_values: torch.Tensor) -> None:
        config, shape = self.config, tuple(pixel_values.shape)
        if len(shape) == 4 and shape[1] == config.num_channels and min(config.grid(*shape[2:])) > 0:
            return
        least = next(side for side in range(1, 2**16) if min(config.grid(side, side)) > 0)
        raise ValueError(
            f"pixel_values has shape {shape}, expected [batch, {config.num_channels}, H, W] with H and W at least "
            f"{least}"
        )

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embeddings, resized by bicubic interpolation when the image has another size than trained."""
        table = self.position_embeddings
        if tuple(grid) == tuple(table.shape[1:3]):
            return table
        resized = F.interpolate(table.permute(0, 3, 1, 2).float(), size=grid, mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1).to(table.dtype)


class VMambaMLP(nn.Module):
    """fc2(act(fc1(x))), or gated: fc2(a * act(b))."""

    def __init__(self, config: VMambaConfig, channels: int):
        super().__init__()
        inner = int(channels * config.mlp_ratio)
        self.gated = config.mlp_gated
        self.fc1 = nn.Linear(channels, 2 * inner if self.gated else inner)
        self.act = ACT2FN[config.mlp_act]
        self.fc2 = nn.Linear(inner, channels)
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            return self.dropout(self.fc2(x * self.act(gate)))
        return self.dropout(self.fc2(self.dropout(self.act(x))))


class VMambaBlock(GradientCheckpointingLayer):
    """x + drop_path(mixer(norm(x))), and the same with an MLP where there is one."""

    def __init__(self, config: VMambaConfig, channels: int, drop_path: float):
        super().__init__()
        self.norm = _norm(config, channels)
        self.mixer = SS2D(
            channels,
            config.scan,
            cascade=config.cascade,
            state_size=config.state_size,
            conv_kernel=config.conv_kernel,
            conv_bias=config.conv_bias,
            expand=config.expand,
            time_step_rank=None if config.time_step_rank == "auto" else config.time_step_rank,
            hidden_act=config.hidden_act,
            gate=config.gate,
            out_norm=config.out_norm,
            activate_output=config.activate_output,
            dropout=config.dropout,
            eps=config.layer_norm_epsilon,
        )
        self.mlp = None
        if config.mlp_ratio > 0:
            self.mlp_norm = _norm(config, channels)
            self.mlp = VMambaMLP(config, channels)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(self.mixer(self.norm(hidden_states)))
        if self.mlp is None:
            return hidden_states
        return hidden_states + self.drop_path(self.mlp(self.mlp_norm(hidden_states)))


class VMambaStage(nn.Module):
    """Blocks of one width, after a step that halves the map where it is not the first stage."""

    def __init__(self, config: VMambaConfig, index: int, rates: list[float]):
        super().__init__()
        inputs, channels = config.hidden_sizes[max(index - 1, 0)], config.hidden_sizes[index]
        self.downsample = None
        if index and config.downsample == "merge":
            self.downsample = PatchMerging(config, inputs, channels)
        elif index:
            side, padding = (2, 0) if config.downsample == "conv2" else (3, 1)
            self.downsample = NormedConvolution(inputs, channels, side, 2, padding, _norm(config, channels))
        self.blocks = nn.ModuleList(VMambaBlock(config, channels, rate) for rate in rates)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class VMambaEncoder(nn.Module):
    """Images to the maps of the stem and of every stage."""

    def __init__(self, config: VMambaConfig):
        super().__init__()
        self.embeddings = VMambaEmbeddings(config)
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        ends = list(accumulate(config.depths))
        self.stages = nn.ModuleList(
            VMambaStage(config, i, rates[end - depth : end])
            for i, (depth, end) in enumerate(zip(config.depths, ends, strict=True))
        )

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.embeddings(pixel_values)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class VMambaPreTrainedModel(KernelPreTrainedModel):
    """Initialisation and loading shared by the VMamba models."""

    config: VMambaConfig
    base_model_prefix = "vmamba"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["VMambaBlock", "VMambaEmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, NormedConvolution):
            reset_convolution(module.conv)
        elif isinstance(module, VMambaEmbeddings) and module.position_embeddings is not None:
            init.trunc_normal_(module.position_embeddings, std=std)
        elif isinstance(module, SS2D):
            module.reset_parameters(self.config.initialization, std)


class VMambaModel(VMambaPreTrainedModel):
    """The encoder: images to the tokens of the last stage.

    Example:
        >>> tokens = VMambaModel(VMambaConfig())(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 49, 768]
    """

    def __init__(self, config: VMambaConfig):
        super().__init__(config)
        self.encoder = VMambaEncoder(config)
        self.norm = _norm(config, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.convolutions[0].conv

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: object
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: `[B, num_channels, H, W]`.
            output_hidden_states: also return the tokens of the stem and of every stage, `[B, L, width]` each.

        Returns:
            `last_hidden_state` `[B, L, hidden_size]`, the normed map of the last stage, row by row (its sides are
            `config.grid(H, W)`); `pooler_output` `[B, hidden_size]`, the mean over its positions.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        maps = self.encoder(pixel_values)
        tokens = self.norm(maps[-1]).flatten(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=tokens.mean(1),
            hidden_states=tuple(one.flatten(1, 2) for one in maps) if output_hidden_states else None,
        )


class VMambaForImageClassification(VMambaPreTrainedModel):
    """VMamba with a linear classifier on the mean over the map."""

    def __init__(self, config: VMambaConfig):
        super().__init__(config)
        self.vmamba = VMambaModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: object,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: `[B, num_channels, H, W]`.
            labels: class indices `[B]`; with them the cross-entropy is returned as `loss`.

        Returns:
            `logits` `[B, num_labels]`.
        """
        outputs = self.vmamba(pixel_values, output_hidden_states=output_hidden_states)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class VMambaBackbone(BackboneMixin, VMambaPreTrainedModel):
    """The maps of the stages that `config.out_features` names, each normed, for heads of segmentation and detection.

    Example:
        >>> config = VMambaConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        >>> maps = VMambaBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # [1, 96, 56, 56], ...
    """

    has_attentions = False

    def __init__(self, config: VMambaConfig):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.encoder = VMambaEncoder(config)
        norms = zip(self.out_features, self.channels, strict=True)
        self.hidden_states_norms = nn.ModuleDict({stage: _norm(config, channels) for stage, channels in norms})
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.convolutions[0].conv

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: object) -> BackboneOutput:
        """`[B, num_channels, H, W]` -> `feature_maps`, `[B, width, h, w]` for every stage of `config.out_features`."""
        maps = dict(zip(self.stage_names, self.encoder(pixel_values), strict=True))
        features = (self.hidden_states_norms[stage](maps[stage]) for stage in self.out_features)
        return BackboneOutput(
            feature_maps=tuple(one.permute(0, 3, 1, 2).contiguous() for one in features),
            hidden_states=tuple(one.permute(0, 3, 1, 2) for one in maps.values()),
        )
