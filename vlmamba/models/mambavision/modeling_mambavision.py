# SPDX-License-Identifier: Apache-2.0
"""MambaVision: stages that convolve, then stages that scan and attend in windows (arXiv:2407.08083).

Maps are channel-last.
"""

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmamba.layers.concat_mixer import ConcatMixer
from vlmamba.layers.maps import MLP, LayerScale, MapBatchNorm, MapBlock, MapEncoder, NormedConvolution, Stage
from vlmamba.layers.windows import WindowAttention, WindowStage
from vlmamba.models.mambavision.configuration_mambavision import MambaVisionConfig
from vlmamba.models.vision import ImageClassifier, MapBackbone, MapModel, VisionPreTrainedModel


class MambaVisionEmbeddings(nn.Module):
    """Images to the first map: two convolutions of step 2, each normed and rectified."""

    def __init__(self, config: MambaVisionConfig):
        super().__init__()
        widths = (config.num_channels, config.stem_size, config.hidden_sizes[0])
        self.convolutions = nn.ModuleList(
            NormedConvolution(i, o, 3, 2, 1, MapBatchNorm(o, eps=config.stem_norm_epsilon), bias=False)
            for i, o in zip(widths, widths[1:], strict=False)
        )
        self.act = nn.ReLU()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` -> the first stage's map `[B, h, w, hidden_sizes[0]]`."""
        x = pixel_values.to(self.convolutions[0].conv.weight.dtype).permute(0, 2, 3, 1)
        for convolution in self.convolutions:
            x = self.act(convolution(x))
        return x


class MambaVisionConvBlock(GradientCheckpointingLayer):
    """x + drop_path(norm2(conv2(gelu(norm1(conv1(x))))))."""

    def __init__(self, config: MambaVisionConfig, channels: int, drop_path: float):
        super().__init__()
        norms = [MapBatchNorm(channels, eps=config.layer_norm_epsilon) for _ in range(2)]
        self.conv1 = NormedConvolution(channels, channels, 3, 1, 1, norms[0])
        self.act = nn.GELU(approximate="tanh")  # nowhere else in these models
        self.conv2 = NormedConvolution(channels, channels, 3, 1, 1, norms[1])
        self.scale = _scale(config.conv_layer_scale_init_value, channels)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.act(self.conv1(hidden_states)))
        return hidden_states + self.drop_path(y if self.scale is None else self.scale(y))


def _scale(value: float | None, channels: int) -> LayerScale | None:
    return None if value is None else LayerScale(channels, value)


def _norm(config: MambaVisionConfig, channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=config.layer_norm_epsilon)


def _mixer(config: MambaVisionConfig, stage: int, attends: bool) -> nn.Module:
    channels = config.hidden_sizes[stage]
    if attends:
        return WindowAttention(
            channels,
            config.num_attention_heads[stage],
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            eps=config.layer_norm_epsilon,
        )
    return ConcatMixer(
        channels,
        config.scan,
        state_size=config.state_size,
        conv_kernel=config.conv_kernel,
        expand=config.expand,
        time_step_rank=None if config.time_step_rank == "auto" else config.time_step_rank,
    )


def _stage(config: MambaVisionConfig, index: int, rates: list[float]) -> Stage:
    channels, downsample = config.hidden_sizes[index], None
    if index:
        downsample = NormedConvolution(config.hidden_sizes[index - 1], channels, 3, 2, 1, nn.Identity(), bias=False)
    if index < config.num_conv_stages:
        return Stage(downsample, [MambaVisionConvBlock(config, channels, rate) for rate in rates])
    first = len(rates) - config.num_attention_blocks(index)
    blocks = [
        MapBlock(
            _norm(config, channels),
            _mixer(config, index, attends=i >= first),
            _norm(config, channels),
            MLP(channels, config.mlp_ratio, dropout=config.dropout),
            rate,
            *(_scale(config.layer_scale_init_value, channels) for _ in range(2)),
        )
        for i, rate in enumerate(rates)
    ]
    return WindowStage(downsample, blocks, config.window_sizes[index])


class MambaVisionPreTrainedModel(VisionPreTrainedModel):
    """Initialisation and loading shared by the MambaVision models."""

    config: MambaVisionConfig
    base_model_prefix = "mambavision"
    _no_split_modules = ["MambaVisionConvBlock", "MambaVisionEmbeddings", "MapBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, ConcatMixer):
            module.reset_parameters(std)
        elif isinstance(module, LayerScale):
            module.reset_parameters()


class MambaVisionModel(MapModel, MambaVisionPreTrainedModel):
    """The encoder: images to the tokens of the last stage. `pooler_output` is the mean over its positions.

    Example:
        >>> model = MambaVisionModel(MambaVisionConfig())
        >>> tokens = model(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 49, 640]
    """

    def build(self, config: MambaVisionConfig) -> None:
        stages = [_stage(config, i, rates) for i, rates in enumerate(config.stage_drop_path_rates)]
        self.encoder = MapEncoder(MambaVisionEmbeddings(config), stages)
        self.norm = MapBatchNorm(config.hidden_size, eps=config.layer_norm_epsilon)


class MambaVisionForImageClassification(ImageClassifier, MambaVisionPreTrainedModel):
    """MambaVision with a linear classifier on the mean over the map."""

    encoder_class = MambaVisionModel


class MambaVisionBackbone(MapBackbone, MambaVisionModel):
    """The maps of the stages that `config.out_features` names, each normed, for heads of segmentation and detection.

    Example:
        >>> config = MambaVisionConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        >>> maps = MambaVisionBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # [1, 80, 56, 56], ...
    """
