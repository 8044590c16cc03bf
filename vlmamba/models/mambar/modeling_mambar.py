# SPDX-License-Identifier: Apache-2.0
"""Mamba-R: a stack of bidirectional Mamba blocks over patches with registers among them (arXiv:2405.14858)."""

import torch
from torch import nn
from transformers import initialization as init

from vlmamba.layers.blocks import MixerBlock
from vlmamba.layers.embeddings import Grid, TokenEmbeddings
from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.models.mambar.configuration_mambar import MambaRConfig
from vlmamba.models.vision import ImageClassifier, TokenBackbone, TokenModel, VisionPreTrainedModel
from vlmamba.scans import get_scan


def _norm(config: MambaRConfig, width: int) -> nn.Module:
    kind = {"rms_norm": nn.RMSNorm, "layer_norm": nn.LayerNorm}[config.norm_type]
    return kind(width, eps=config.layer_norm_epsilon)


class MambaREmbeddings(TokenEmbeddings):
    """Patches in raster order, positions added, and after every M // (R + 1) of the M one of the R registers."""

    def __init__(self, config: MambaRConfig):
        super().__init__(
            config.num_channels,
            config.hidden_size,
            config.patch_size,
            config.patch_size,
            config.grid_size,
            config.num_registers,
            dropout=config.dropout,
            pad=config.pad_images,
        )
        self.num_registers = config.num_registers

    def extra_positions(self, num_patches: int) -> list[int]:
        step = num_patches // (self.num_registers + 1)
        return [step + i * (step + 1) for i in range(self.num_registers)]


class RegisterNeck(nn.Module):
    """Registers `[B, R, D]`, each to fewer channels, one after another and normed: `[B, R * D / reduction]`."""

    def __init__(self, config: MambaRConfig):
        super().__init__()
        width = config.hidden_size // config.register_reduction
        self.reduction = nn.Linear(config.hidden_size, width, bias=False)
        self.norm = _norm(config, config.num_registers * width)

    def forward(self, registers: torch.Tensor) -> torch.Tensor:
        return self.norm(self.reduction(registers).flatten(1))


class MambaRPreTrainedModel(VisionPreTrainedModel):
    """Initialisation and loading shared by the Mamba-R models."""

    config: MambaRConfig
    base_model_prefix = "mambar"
    _no_split_modules = ["MixerBlock", "MambaREmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation, but dt of both directions starts in [1e-3, 1e-1]."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, VisionMixer):
            module.reset_parameters(depth=self.config.num_hidden_layers)


class MambaRModel(TokenModel, MambaRPreTrainedModel):
    """The encoder: images to tokens, registers among them. `pooler_output` is the registers one after another.

    Example:
        >>> tokens = MambaRModel(MambaRConfig())(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 208, 192]
    """

    def build(self, config: MambaRConfig) -> None:
        self.embeddings = MambaREmbeddings(config)
        self.layers = nn.ModuleList(
            MixerBlock(
                _norm(config, config.hidden_size),
                VisionMixer(
                    config.hidden_size,
                    get_scan(config.scan).num_paths,
                    state_size=config.state_size,
                    conv_kernel=config.conv_kernel,
                    expand=config.expand,
                    time_step_rank=config.time_step_rank,
                    merge="mean",
                ),
                rate,
                config.residual_in_fp32,
            )
            for rate in config.drop_path_rates(config.num_hidden_layers)
        )
        self.norm = _norm(config, config.hidden_size)
        self.neck = RegisterNeck(config) if config.register_reduction > 1 else nn.Flatten()

    def step(self, index: int, tokens: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Grid]:
        paths = get_scan(self.config.scan).paths(1, tokens.shape[1], device=tokens.device)
        return self.layers[index](tokens, paths), grid

    def pool(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.neck(tokens[:, self.embeddings.extra_positions(grid[0] * grid[1])])


class MambaRForImageClassification(ImageClassifier, MambaRPreTrainedModel):
    """Mamba-R with a linear classifier on its registers."""

    encoder_class = MambaRModel


class MambaRBackbone(TokenBackbone, MambaRModel):
    """The patches after the layers that `config.out_features` names, as maps, for heads of segmentation and detection.

    Example:
        >>> config = MambaRConfig(out_indices=[6, 12, 18, 24], add_fpn=True)
        >>> maps = MambaRBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # 56 x 56, ..., 7 x 7
    """

    def build(self, config: MambaRConfig) -> None:
        super().build(config)
        del self.neck  # of the registers, which a backbone does not give
