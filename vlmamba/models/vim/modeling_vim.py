# SPDX-License-Identifier: Apache-2.0
"""Vim: a plain, ViT-like stack of bidirectional Mamba blocks (arXiv:2401.09417)."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.models.modeling_utils import KernelPreTrainedModel
from vlmamba.models.vim.configuration_vim import VimConfig
from vlmamba.ops.numerics import widened
from vlmamba.scans import get_scan


def _norm(config: VimConfig) -> nn.Module:
    kind = {"rms_norm": nn.RMSNorm, "layer_norm": nn.LayerNorm}[config.norm_type]
    return kind(config.hidden_size, eps=config.layer_norm_epsilon)


class VimEmbeddings(nn.Module):
    """Patches in raster order, class token(s) put among them, positions added after."""

    def __init__(self, config: VimConfig):
        super().__init__()
        self.config = config
        self.patch_embeddings = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_stride
        )
        extra = config.num_class_tokens
        self.class_tokens = nn.Parameter(torch.empty(1, extra, config.hidden_size)) if extra else None
        self.position_embeddings = None
        if config.use_position_embeddings:
            length = math.prod(config.grid_size) + extra
            self.position_embeddings = nn.Parameter(torch.empty(1, length, config.hidden_size))

    def class_positions(self, num_patches: int) -> list[int]:
        """Where the class tokens stand in the sequence."""
        positions = {"middle": [num_patches // 2], "first": [0], "both": [0, num_patches + 1], "none": []}
        return positions[self.config.class_token]

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """`[B, C, H, W]` -> tokens `[B, L, hidden_size]` and the grid (rows, columns)."""
        expected = (self.config.num_channels, self.config.patch_size)
        channels, *sides = pixel_values.shape[1:]
        if pixel_values.dim() != 4 or channels != expected[0] or min(sides) < expected[1]:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected [batch, {expected[0]}, H, W] with "
                f"H and W at least {expected[1]}"
            )
        patches = self.patch_embeddings(pixel_values.to(self.patch_embeddings.weight.dtype))
        grid = tuple(patches.shape[2:])
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = self._insert(tokens, self.class_tokens, self.class_positions(tokens.shape[1]))
        if self.position_embeddings is not None:
            tokens = tokens + self._positions(grid)
        return tokens, grid

    @staticmethod
    def _insert(tokens: torch.Tensor, extra: torch.Tensor | None, positions: list[int]) -> torch.Tensor:
        for token, position in enumerate(positions):
            one = extra[:, token : token + 1].expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :position], one, tokens[:, position:]], dim=1)
        return tokens

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embeddings, resized by bicubic interpolation when the image has another size than trained."""
        if grid == tuple(self.config.grid_size):
            return self.position_embeddings
        old = self.config.grid_size
        at = self.class_positions(math.prod(old))
        extra = self.position_embeddings[:, at]
        patches = [i for i in range(self.position_embeddings.shape[1]) if i not in at]
        table = self.position_embeddings[:, patches].unflatten(1, old).permute(0, 3, 1, 2).float()
        table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False).to(extra.dtype)
        return self._insert(table.flatten(2).transpose(1, 2), extra, self.class_positions(math.prod(grid)))


class VimBlock(GradientCheckpointingLayer):
    """x + drop_path(mixer(norm(x)))."""

    def __init__(self, config: VimConfig, drop_path: float):
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = _norm(config)
        self.mixer = VisionMixer(
            config.hidden_size,
            get_scan(config.scan).num_paths,
            state_size=config.state_size,
            conv_kernel=config.conv_kernel,
            expand=config.expand,
            time_step_rank=config.time_step_rank,
            shared=config.shared_directions,
            average=config.average_directions,
            layer_scale=config.layer_scale_init_value,
        )
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, hidden_states: torch.Tensor, paths: torch.Tensor) -> torch.Tensor:
        residual = widened(hidden_states) if self.residual_in_fp32 else hidden_states
        normed = self.norm(hidden_states.to(self.norm.weight.dtype))
        return residual + self.drop_path(self.mixer(normed, paths))


class VimPreTrainedModel(KernelPreTrainedModel):
    """Initialisation and loading shared by the Vim models."""

    config: VimConfig
    base_model_prefix = "vim"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["VimBlock", "VimEmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation, but dt of both directions starts in [1e-3, 1e-1]."""
        super()._init_weights(module)
        if isinstance(module, VimEmbeddings):
            for parameter in (module.class_tokens, module.position_embeddings):
                if parameter is not None:
                    init.trunc_normal_(parameter, std=self.config.initializer_range)
            fan_in = self.config.num_channels * self.config.patch_size**2
            init.trunc_normal_(module.patch_embeddings.weight, std=fan_in**-0.5)
            init.zeros_(module.patch_embeddings.bias)
        elif isinstance(module, VisionMixer):
            module.reset_parameters(depth=self.config.num_hidden_layers)


class VimModel(VimPreTrainedModel):
    """The encoder: images to tokens.

    Example:
        >>> tokens = VimModel(VimConfig())(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 197, 192]
    """

    def __init__(self, config: VimConfig):
        super().__init__(config)
        self.embeddings = VimEmbeddings(config)
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(VimBlock(config, rate) for rate in rates)
        self.norm = _norm(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: object
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: `[B, num_channels, H, W]`.
            output_hidden_states: also return the tokens before the first and after every block.

        Returns:
            `last_hidden_state` `[B, L, hidden_size]`, all tokens in sequence order, class tokens included;
            `pooler_output` `[B, hidden_size]`, the class token(s), else what `config.pooling` says.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states, grid = self.embeddings(pixel_values)
        paths = get_scan(self.config.scan).paths(1, hidden_states.shape[1], device=hidden_states.device)
        collected = [hidden_states]
        for layer in self.layers:
            hidden_states = layer(hidden_states, paths)
            collected.append(hidden_states)
        hidden_states = self.norm(hidden_states.to(self.norm.weight.dtype))
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=self._pool(hidden_states, math.prod(grid)),
            hidden_states=tuple(collected) if output_hidden_states else None,
        )

    def _pool(self, tokens: torch.Tensor, num_patches: int) -> torch.Tensor:
        at = self.embeddings.class_positions(num_patches)
        if at:
            return tokens[:, at].mean(1)
        return tokens[:, -1] if self.config.pooling == "last" else tokens.mean(1)

    def patch_tokens(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The patches `[B, h * w, hidden_size]` of all tokens `[B, L, hidden_size]`: class tokens left out."""
        at = set(self.embeddings.class_positions(math.prod(grid)))
        return tokens[:, [i for i in range(tokens.shape[1]) if i not in at]] if at else tokens


class VimForImageClassification(VimPreTrainedModel):
    """Vim with a linear classifier on the class token or the pooled tokens."""

    def __init__(self, config: VimConfig):
        super().__init__(config)
        self.vim = VimModel(config)
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
        outputs = self.vim(pixel_values, output_hidden_states=output_hidden_states)
        if self.config.class_token == "none" and self.config.pooling in ("max", "none"):
            logits = self.classifier(outputs.last_hidden_state)
            logits = logits.amax(1) if self.config.pooling == "max" else logits
        else:
            logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
