# SPDX-License-Identifier: Apache-2.0
"""Vim: a plain, ViT-like stack of bidirectional Mamba blocks (arXiv:2401.09417)."""

import math
from collections.abc import Container

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmamba.layers.blocks import MixerBlock
from vlmamba.layers.embeddings import Grid, TokenEmbeddings
from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.models.rotary import RotaryTokens
from vlmamba.models.vim.configuration_vim import VimConfig
from vlmamba.models.vision import Encoded, ImageClassifier, TokenBackbone, TokenModel, VisionPreTrainedModel
from vlmamba.scans.content import put, take


def _norm(config: VimConfig) -> nn.Module:
    kind = {"rms_norm": nn.RMSNorm, "layer_norm": nn.LayerNorm}[config.norm_type]
    return kind(config.hidden_size, eps=config.layer_norm_epsilon)


class VimEmbeddings(TokenEmbeddings):
    """Patches in raster order, class token(s) put among them, positions added after."""

    def __init__(self, config: VimConfig):
        super().__init__(
            config.num_channels,
            config.hidden_size,
            config.patch_size,
            config.patch_stride,
            config.grid_size,
            config.num_class_tokens,
            config.use_position_embeddings,
            pad=config.pad_images,
        )
        self.class_token = config.class_token

    def extra_positions(self, num_patches: int) -> list[int]:
        positions = {"middle": [num_patches // 2], "first": [0], "both": [0, num_patches + 1], "none": []}
        return positions[self.class_token]


class VimPreTrainedModel(VisionPreTrainedModel):
    """Initialisation and loading shared by the Vim models."""

    config: VimConfig
    base_model_prefix = "vim"
    _no_split_modules = ["MixerBlock", "VimEmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation, but dt of both directions starts in [1e-3, 1e-1]."""
        super()._init_weights(module)
        if isinstance(module, VisionMixer):
            module.reset_parameters(depth=self.config.num_hidden_layers)


class VimModel(RotaryTokens, TokenModel, VimPreTrainedModel):
    """The encoder: images to tokens. `pooler_output` is the class token(s), else what `config.pooling` says.

    `forward` takes two more arguments, each for the patches of each image, as rows of the grid:
        token_mask: bool `[B, h * w]`; where it is False, the patch is hidden: the scans pass it by (dt = 0) and the
            convolutions read 0 for it. What the tokens of hidden patches hold means nothing, and means leave them out.
        token_order: int64 `[B, h * w]`, an order of each image's own, as `vlmamba.scans.content` makes them: the scan
            then reads the patches so arranged (class tokens keep their places).

    Example:
        >>> tokens = VimModel(VimConfig())(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 197, 192]
    """

    def build(self, config: VimConfig) -> None:
        self.embeddings = VimEmbeddings(config)
        self.layers = nn.ModuleList(
            MixerBlock(
                _norm(config),
                VisionMixer(
                    config.hidden_size,
                    config.scan_of_layer(i).num_paths,
                    state_size=config.state_size,
                    conv_kernel=config.conv_kernel,
                    expand=config.expand,
                    time_step_rank=config.time_step_rank,
                    shared=config.shared_directions,
                    merge="mean" if config.average_directions else "sum",
                    layer_scale=config.layer_scale_init_value,
                ),
                rate,
                config.residual_in_fp32,
            )
            for i, rate in enumerate(config.drop_path_rates(config.num_hidden_layers))
        )
        self.norm = _norm(config)

    encode_arguments = ("token_mask", "token_order")

    def encode(
        self,
        pixel_values: torch.Tensor,
        keep: Container[int] = (),
        token_mask: torch.Tensor | None = None,
        token_order: torch.Tensor | None = None,
    ) -> Encoded:
        length = math.prod(self.config.grid(*pixel_values.shape[2:]))
        arguments = {}
        for name, values, dtype in (("token_mask", token_mask, torch.bool), ("token_order", token_order, torch.int64)):
            if values is None:
                continue
            if values.shape != (pixel_values.shape[0], length) or values.dtype != dtype:
                raise ValueError(
                    f"{name} has shape {tuple(values.shape)} and dtype {values.dtype}, expected "
                    f"{(pixel_values.shape[0], length)} and {dtype}"
                )
            arguments[name] = self._with_class_tokens(values)
        return super().encode(pixel_values, keep, **arguments)

    def _with_class_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """A mask or an order of patches as one of all tokens: class tokens are seen, and stay where they are."""
        at = self.embeddings.extra_positions(values.shape[1])
        if not at:
            return values
        if values.dtype == torch.bool:
            own = torch.ones(len(at), dtype=torch.bool, device=values.device)
        else:
            own = torch.tensor(at, device=values.device)
            patches = [i for i in range(values.shape[1] + len(at)) if i not in at]
            values = torch.tensor(patches, device=values.device)[values]
        return self.embeddings.insert(values.unsqueeze(-1), own.expand(values.shape[0], -1).unsqueeze(-1)).squeeze(-1)

    def step(
        self,
        index: int,
        tokens: torch.Tensor,
        grid: Grid,
        token_mask: torch.Tensor | None = None,
        token_order: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Grid]:
        rows = grid if self.config.class_token == "none" else (1, tokens.shape[1])
        paths = self.config.scan_of_layer(index).paths(*rows, device=tokens.device)
        tokens = self.before_layer(index, tokens, grid)
        if token_order is None:
            mixed = self.layers[index](tokens, paths, 0, token_mask)
        else:
            token_mask = None if token_mask is None else token_mask.gather(1, token_order)
            mixed = self.layers[index](take(tokens, token_order), paths, 0, token_mask)
            mixed = put(mixed, token_order, tokens.shape[1])
        return self.after_layer(index, tokens, mixed, grid), grid

    def pool(
        self, tokens: torch.Tensor, grid: Grid, token_mask: torch.Tensor | None = None, **_: object
    ) -> torch.Tensor:
        at = self.embeddings.extra_positions(grid[0] * grid[1])
        if at:
            return tokens[:, at].mean(1)
        if self.config.pooling == "last":
            return tokens[:, -1]
        if token_mask is None:
            return tokens.mean(1)
        seen = token_mask.unsqueeze(-1)
        return (tokens * seen).sum(1) / seen.sum(1).clamp(min=1)


class VimForImageClassification(ImageClassifier, VimPreTrainedModel):
    """Vim with a linear classifier on the class token or the pooled tokens."""

    encoder_class = VimModel

    def logits(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        if self.config.class_token != "none" or self.config.pooling not in ("max", "none"):
            return super().logits(outputs)
        logits = self.classifier(outputs.last_hidden_state)
        return logits.amax(1) if self.config.pooling == "max" else logits


class VimBackbone(TokenBackbone, VimModel):
    """The patches after the layers that `config.out_features` names, as maps, for heads of segmentation and detection.

    Example:
        >>> config = VimConfig(out_indices=[6, 12, 18, 24], add_fpn=True)
        >>> maps = VimBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # 56 x 56, ..., 7 x 7
    """
