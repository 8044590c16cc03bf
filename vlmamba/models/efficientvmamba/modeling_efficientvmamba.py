# SPDX-License-Identifier: Apache-2.0
"""EfficientVMamba: atrous scans beside convolutions, then convolutions alone (arXiv:2403.09977).

Maps are channel-last.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from vlmamba.layers.inverted_residual import InvertedResidual
from vlmamba.layers.maps import (
    MLP,
    MapBatchNorm,
    MapBlock,
    MapEncoder,
    NormedConvolution,
    PatchMerging,
    PatchStem,
    Stage,
    convolved,
    depthwise,
    reset_convolution,
)
from vlmamba.layers.merging import ChannelGate
from vlmamba.layers.ss2d import SS2D
from vlmamba.models.efficientvmamba.configuration_efficientvmamba import EfficientVMambaConfig
from vlmamba.models.vision import ImageClassifier, MapBackbone, MapModel, VisionPreTrainedModel


def _norm(config: EfficientVMambaConfig, channels: int) -> nn.Module:
    return nn.LayerNorm(channels, eps=config.layer_norm_epsilon)


class ConvolutionBranch(nn.Module):
    """A depthwise convolution, a batch norm, GELU, and a linear layer at every position."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.conv = depthwise(channels, 3, bias=True)
        self.norm = MapBatchNorm(channels, eps=eps)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, channels]` -> the same shape."""
        return self.out_proj(F.gelu(self.norm(convolved(self.conv, x))))

    def reset_parameters(self) -> None:
        """PyTorch's initialisation of convolutions."""
        reset_convolution(self.conv)
        reset_convolution(self.out_proj)


class GlobalLocalMixer(nn.Module):
    """Scans and convolutions of the same map, each through the one channel gate, summed: the EVSS block's mixer."""

    def __init__(self, config: EfficientVMambaConfig, channels: int):
        super().__init__()
        self.scan_branch = SS2D(
            channels,
            config.scan,
            state_size=config.state_size,
            conv_kernel=config.conv_kernel,
            expand=config.expand,
            time_step_rank=None if config.time_step_rank == "auto" else config.time_step_rank,
            hidden_act=config.hidden_act,
            eps=config.layer_norm_epsilon,
        )
        self.conv_branch = ConvolutionBranch(channels, config.layer_norm_epsilon)
        self.gate = ChannelGate(channels, eps=config.layer_norm_epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, channels]` -> the same shape."""
        branches = torch.stack([self.scan_branch(x), self.conv_branch(x)])
        return self.gate(branches.flatten(2, 3)).sum(0).unflatten(1, x.shape[1:3])


def _block(config: EfficientVMambaConfig, index: int, rate: float) -> MapBlock:
    channels, eps = config.hidden_sizes[index], config.layer_norm_epsilon
    if index >= config.num_scan_stages:
        return MapBlock(nn.Identity(), InvertedResidual(channels, config.conv_expand, eps=eps), drop_path=rate)
    mlp = (_norm(config, channels), MLP(channels, config.mlp_ratio)) if config.mlp_ratio > 0 else (None, None)
    return MapBlock(_norm(config, channels), GlobalLocalMixer(config, channels), *mlp, rate)


def _downsample(config: EfficientVMambaConfig, index: int) -> nn.Module | None:
    if not index:
        return None
    inputs, channels = config.hidden_sizes[index - 1 : index + 1]
    if config.downsample == "merge":
        return PatchMerging(inputs, channels, _norm(config, 4 * inputs))
    return NormedConvolution(inputs, channels, 2, 2, 0, _norm(config, channels))


class EfficientVMambaPreTrainedModel(VisionPreTrainedModel):
    """Initialisation and loading shared by the EfficientVMamba models."""

    config: EfficientVMambaConfig
    base_model_prefix = "efficientvmamba"
    _no_split_modules = ["MapBlock", "PatchStem"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, SS2D):
            module.reset_parameters(std=std)
        elif isinstance(module, ConvolutionBranch | InvertedResidual):
            module.reset_parameters()


class EfficientVMambaModel(MapModel, EfficientVMambaPreTrainedModel):
    """The encoder: images to the tokens of the last stage. `pooler_output` is the mean over its positions.

    Example:
        >>> config = EfficientVMambaConfig()
        >>> tokens = EfficientVMambaModel(config)(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 49, 384]
    """

    def build(self, config: EfficientVMambaConfig) -> None:
        width, size = config.hidden_sizes[0], config.patch_size
        norm = _norm(config, width) if config.patch_norm else nn.Identity()
        stages = [
            Stage(_downsample(config, i), [_block(config, i, rate) for rate in rates])
            for i, rates in enumerate(config.stage_drop_path_rates)
        ]
        self.encoder = MapEncoder(PatchStem([(config.num_channels, width, size, size, 0)], [norm]), stages)
        self.norm = _norm(config, config.hidden_size)


class EfficientVMambaForImageClassification(ImageClassifier, EfficientVMambaPreTrainedModel):
    """EfficientVMamba with a linear classifier on the mean over the map."""

    encoder_class = EfficientVMambaModel


class EfficientVMambaBackbone(MapBackbone, EfficientVMambaModel):
    """The maps of the stages that `config.out_features` names, each normed, for heads of segmentation and detection.

    Example:
        >>> config = EfficientVMambaConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        >>> maps = EfficientVMambaBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # [1, 48, 56, 56], ...
    """
