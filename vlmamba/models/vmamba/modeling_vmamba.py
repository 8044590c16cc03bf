# SPDX-License-Identifier: Apache-2.0
"""VMamba: stages of visual state space blocks over a shrinking map (arXiv:2401.10166). Maps are channel-last."""

import torch
from torch import nn
from transformers import initialization as init

from vlmamba.layers.embeddings import resize_map
from vlmamba.layers.maps import (
    MLP,
    MapBatchNorm,
    MapBlock,
    MapEncoder,
    NormedConvolution,
    PatchMerging,
    PatchStem,
    Stage,
)
from vlmamba.layers.ss2d import SS2D
from vlmamba.models.vision import ImageClassifier, MapBackbone, MapModel, VisionPreTrainedModel
from vlmamba.models.vmamba.configuration_vmamba import VMambaConfig


def _norm(config: VMambaConfig, channels: int) -> nn.Module:
    kind = {"layer_norm": nn.LayerNorm, "batch_norm": MapBatchNorm}[config.norm_type]
    return kind(channels, eps=config.layer_norm_epsilon)


class VMambaEmbeddings(PatchStem):
    """Images to the first map, with positions where there are any."""

    def __init__(self, config: VMambaConfig):
        width, size = config.hidden_sizes[0], config.patch_size
        if config.patch_embedding == "single":
            sizes = [(config.num_channels, width, size, size, 0)]
        else:
            step = size // 2
            sizes = [(i, o, step + 1, step, 1) for i, o in ((config.num_channels, width // 2), (width // 2, width))]
        super().__init__(sizes, [_norm(config, s[1]) if config.patch_norm else nn.Identity() for s in sizes])
        self.position_embeddings = None
        if config.use_position_embeddings:
            self.position_embeddings = nn.Parameter(torch.empty(1, *config.grid_size, width))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` -> the first stage's map `[B, h, w, hidden_sizes[0]]`."""
        x, table = super().forward(pixel_values), self.position_embeddings
        if table is None:
            return x
        return x + (table if x.shape[1:3] == table.shape[1:3] else resize_map(table, x.shape[1:3]))


def _mixer(config: VMambaConfig, channels: int) -> SS2D:
    return SS2D(
        channels,
        config.scan,
        merge=config.merge,
        headwise=config.headwise,
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


def _block(config: VMambaConfig, channels: int, rate: float) -> MapBlock:
    mlp = (None, None)
    if config.mlp_ratio > 0:
        options = (config.mlp_ratio, config.mlp_act, config.mlp_gated, config.mlp_dropout)
        mlp = (_norm(config, channels), MLP(channels, *options))
    return MapBlock(_norm(config, channels), _mixer(config, channels), *mlp, rate)


def _downsample(config: VMambaConfig, index: int) -> nn.Module | None:
    if not index:
        return None
    inputs, channels = config.hidden_sizes[index - 1 : index + 1]
    if config.downsample == "merge":
        return PatchMerging(inputs, channels, _norm(config, 4 * inputs))
    side, padding = (2, 0) if config.downsample == "conv2" else (3, 1)
    return NormedConvolution(inputs, channels, side, 2, padding, _norm(config, channels))


class VMambaPreTrainedModel(VisionPreTrainedModel):
    """Initialisation and loading shared by the VMamba models."""

    config: VMambaConfig
    base_model_prefix = "vmamba"
    _no_split_modules = ["MapBlock", "VMambaEmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, VMambaEmbeddings) and module.position_embeddings is not None:
            init.trunc_normal_(module.position_embeddings, std=std)
        elif isinstance(module, SS2D):
            module.reset_parameters(self.config.initialization, std)


class VMambaModel(MapModel, VMambaPreTrainedModel):
    """The encoder: images to the tokens of the last stage. `pooler_output` is the mean over its positions.

    Example:
        >>> tokens = VMambaModel(VMambaConfig())(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 49, 768]
    """

    def build(self, config: VMambaConfig) -> None:
        stages = [
            Stage(_downsample(config, i), [_block(config, channels, rate) for rate in rates])
            for i, (channels, rates) in enumerate(zip(config.hidden_sizes, config.stage_drop_path_rates, strict=True))
        ]
        self.encoder = MapEncoder(VMambaEmbeddings(config), stages)
        self.norm = _norm(config, config.hidden_size)


class VMambaForImageClassification(ImageClassifier, VMambaPreTrainedModel):
    """VMamba with a linear classifier on the mean over the map."""

    encoder_class = VMambaModel


class VMambaBackbone(MapBackbone, VMambaModel):
    """The maps of the stages that `config.out_features` names, each normed, for heads of segmentation and detection.

    Example:
        >>> config = VMambaConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        >>> maps = VMambaBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # [1, 96, 56, 56], ...
    """

    def make_norm(self, channels: int) -> nn.Module:
        return _norm(self.config, channels)
