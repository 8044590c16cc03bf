# SPDX-License-Identifier: Apache-2.0
"""MSVMamba: VMamba with most of its scans on a smaller map (arXiv:2405.14174). Maps are channel-last."""

import torch
from torch import nn
from transformers import initialization as init

from vlmamba.layers.maps import MapBlock, MapEncoder, PatchMerging, PatchStem, Stage
from vlmamba.layers.multiscale import ConvMLP, MultiScaleSS2D
from vlmamba.models.msvmamba.configuration_msvmamba import MSVMambaConfig
from vlmamba.models.vision import ImageClassifier, MapBackbone, MapModel, VisionPreTrainedModel


def _norm(config: MSVMambaConfig, channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=config.layer_norm_epsilon)


def _block(config: MSVMambaConfig, channels: int, rate: float) -> MapBlock:
    mixer = MultiScaleSS2D(
        channels,
        config.scan,
        config.low_scan,
        config.low_stride,
        state_size=config.state_size,
        conv_kernel=config.conv_kernel,
        low_conv_kernel=config.low_conv_kernel,
        conv_bias=config.conv_bias,
        expand=config.expand,
        time_step_rank=None if config.time_step_rank == "auto" else config.time_step_rank,
        hidden_act=config.hidden_act,
        squeeze_reduction=config.squeeze_reduction,
        dropout=config.dropout,
        eps=config.layer_norm_epsilon,
    )
    mlp = ConvMLP(channels, config.mlp_ratio, config.mlp_dropout)
    return MapBlock(_norm(config, channels), mixer, _norm(config, channels), mlp, rate)


def _downsample(config: MSVMambaConfig, index: int) -> PatchMerging | None:
    if not index:
        return None
    inputs, channels = config.hidden_sizes[index - 1 : index + 1]
    return PatchMerging(inputs, channels, _norm(config, 4 * inputs))


class MSVMambaPreTrainedModel(VisionPreTrainedModel):
    """Initialisation and loading shared by the MSVMamba models."""

    config: MSVMambaConfig
    base_model_prefix = "msvmamba"
    _no_split_modules = ["MapBlock", "PatchStem"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, MultiScaleSS2D):
            module.reset_parameters(std)


class MSVMambaModel(MapModel, MSVMambaPreTrainedModel):
    """The encoder: images to the tokens of the last stage. `pooler_output` is the mean over its positions.

    Example:
        >>> tokens = MSVMambaModel(MSVMambaConfig())(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 49, 768]
    """

    def build(self, config: MSVMambaConfig) -> None:
        width, side = config.hidden_sizes[0], config.patch_size
        stem = PatchStem([(config.num_channels, width, side, side, 0)], [_norm(config, width)])
        stages = [
            Stage(_downsample(config, i), [_block(config, channels, rate) for rate in rates])
            for i, (channels, rates) in enumerate(zip(config.hidden_sizes, config.stage_drop_path_rates, strict=True))
        ]
        self.encoder = MapEncoder(stem, stages)
        self.norm = _norm(config, config.hidden_size)


class MSVMambaForImageClassification(ImageClassifier, MSVMambaPreTrainedModel):
    """MSVMamba with a linear classifier on the mean over the map."""

    encoder_class = MSVMambaModel


class MSVMambaBackbone(MapBackbone, MSVMambaModel):
    """The maps of the stages that `config.out_features` names, each normed, for heads of segmentation and detection.

    Example:
        >>> config = MSVMambaConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        >>> maps = MSVMambaBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # [1, 96, 56, 56], ...
    """
