# SPDX-License-Identifier: Apache-2.0
"""PlainMamba: a plain stack of Mamba blocks that scan the patches in snakes (arXiv:2403.17695)."""

import torch
from torch import nn
from transformers import initialization as init

from vlmamba.layers.blocks import MixerBlock
from vlmamba.layers.embeddings import Grid, TokenEmbeddings
from vlmamba.layers.maps import depthwise, reset_convolution
from vlmamba.layers.plain_mixer import PlainMixer
from vlmamba.models.plainmamba.configuration_plainmamba import PlainMambaConfig
from vlmamba.models.vision import ImageClassifier, TokenBackbone, TokenModel, VisionPreTrainedModel

_STEM_WIDTH = 64


class PlainMambaEmbeddings(TokenEmbeddings):
    """A convolutional stem that halves the image, patches of what it gives, positions."""

    def __init__(self, config: PlainMambaConfig):
        super().__init__(
            _STEM_WIDTH,
            config.hidden_size,
            config.patch_size // 2,
            config.patch_size // 2,
            config.position_grid,
            positions=config.use_position_embeddings,
            dropout=config.dropout,
            interpolation=config.interpolation,
            pad=config.pad_images,
        )
        layers = [*_stem_convolution(config.num_channels, 7, 2)]
        for _ in range(config.num_stem_convolutions):
            layers += _stem_convolution(_STEM_WIDTH, 3, 1)
        self.stem = nn.Sequential(*layers)

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not self.pad:  # before the stem reads what is left over
            whole = 2 * self.patch_size
            height, width = (side // whole * whole for side in pixel_values.shape[2:])
            pixel_values = pixel_values[:, :, :height, :width]
        return super().project(self.stem(pixel_values.to(self.patch_embeddings.weight.dtype)))

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """PyTorch's initialisation for the convolutions, truncated normal of `std` for the positions."""
        super().reset_parameters(std)
        reset_convolution(self.patch_embeddings)


def _stem_convolution(channels: int, side: int, step: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, _STEM_WIDTH, side, step, side // 2, bias=False)
    return [conv, nn.BatchNorm2d(_STEM_WIDTH), nn.ReLU()]


class PlainMambaConvolution(nn.Module):
    """A depthwise 3 x 3 convolution of the tokens' map, batch norm, GELU; no residual goes around it."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = depthwise(channels, 3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.GELU()

    def forward(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """`[B, L, D]` -> `[B, L, D]`."""
        image = tokens.transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
        return self.act(self.norm(self.conv(image))).flatten(2).transpose(1, 2)


def _mixer(config: PlainMambaConfig) -> PlainMixer:
    return PlainMixer(
        config.hidden_size,
        config.scan,
        state_size=config.state_size,
        conv_kernel=config.conv_kernel,
        conv_bias=config.conv_bias,
        expand=config.expand,
        time_step_rank=config.time_step_rank,
        bias=config.projection_bias,
        move_embeddings=config.use_move_embeddings,
        permute_inputs=config.permute_inputs,
        double_time_step_bias=config.double_time_step_bias,
        layer_scale=config.layer_scale_init_value,
    )


class PlainMambaPreTrainedModel(VisionPreTrainedModel):
    """Initialisation and loading shared by the PlainMamba models."""

    config: PlainMambaConfig
    base_model_prefix = "plainmamba"
    _no_split_modules = ["MixerBlock", "PlainMambaEmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, PlainMixer):
            module.reset_parameters(self.config.initializer_range)


class PlainMambaModel(TokenModel, PlainMambaPreTrainedModel):
    """The encoder: images to tokens. `pooler_output` is their mean.

    Example:
        >>> tokens = PlainMambaModel(PlainMambaConfig())(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 196, 192]
    """

    def build(self, config: PlainMambaConfig) -> None:
        width = config.hidden_size
        norm = {"rms_norm": nn.RMSNorm, "layer_norm": nn.LayerNorm}[config.norm_type]
        self.embeddings = PlainMambaEmbeddings(config)
        self.layers = nn.ModuleList(
            MixerBlock(norm(width, eps=config.layer_norm_epsilon), _mixer(config), rate)
            for rate in config.drop_path_rates(config.num_hidden_layers)
        )
        # beside the layers: gradient checkpointing runs those twice, which would count a batch twice in the norms
        self.convolutions = nn.ModuleDict({str(i): PlainMambaConvolution(width) for i in config.convolved_layers})
        self.norm = nn.LayerNorm(width, eps=config.final_norm_epsilon) if config.use_final_norm else nn.Identity()

    def step(self, index: int, tokens: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Grid]:
        tokens = self.layers[index](tokens, grid)
        if index in self.config.convolved_layers:
            tokens = self.convolutions[str(index)](tokens, grid)
        return tokens, grid


class PlainMambaForImageClassification(ImageClassifier, PlainMambaPreTrainedModel):
    """PlainMamba with a linear classifier on the mean over the tokens."""

    encoder_class = PlainMambaModel


class PlainMambaBackbone(TokenBackbone, PlainMambaModel):
    """The tokens after the layers that `config.out_features` names, as maps, for heads of segmentation and detection.

    Example:
        >>> config = PlainMambaConfig(out_indices=[6, 12, 18, 24], add_fpn=True)
        >>> maps = PlainMambaBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # 56 x 56, ..., 7 x 7
    """
