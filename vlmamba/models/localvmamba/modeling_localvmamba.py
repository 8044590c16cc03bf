# SPDX-License-Identifier: Apache-2.0
"""LocalVMamba: VMamba whose blocks each read four orders of their own, windows among them (arXiv:2403.09338)."""

import torch
from torch import nn
from transformers import initialization as init

from vlmamba.layers.maps import MapBlock, MapEncoder, PatchMerging, PatchStem, Stage
from vlmamba.layers.ss2d import SS2D
from vlmamba.models.local_scans import ScanSearch
from vlmamba.models.localvmamba.configuration_localvmamba import LocalVMambaConfig
from vlmamba.models.vision import ImageClassifier, MapBackbone, MapModel, VisionPreTrainedModel


def _norm(config: LocalVMambaConfig, channels: int) -> nn.Module:
    return nn.LayerNorm(channels, eps=config.layer_norm_epsilon)


def _stem(config: LocalVMambaConfig) -> PatchStem:
    width, size = config.hidden_sizes[0], config.patch_size
    norm = _norm(config, width) if config.patch_norm else nn.Identity()
    return PatchStem([(config.num_channels, width, size, size, 0)], [norm])


def _block(config: LocalVMambaConfig, channels: int, index: int, rate: float) -> MapBlock:
    mixer = SS2D(
        channels,
        config.directions[index],
        merge=config.merge,
        state_size=config.state_size,
        conv_kernel=config.conv_kernel,
        conv_bias=config.conv_bias,
        expand=config.expand,
        time_step_rank=None if config.time_step_rank == "auto" else config.time_step_rank,
        hidden_act=config.hidden_act,
        dropout=config.dropout,
        eps=config.layer_norm_epsilon,
    )
    return MapBlock(_norm(config, channels), mixer, drop_path=rate)


class LocalVMambaPreTrainedModel(ScanSearch, VisionPreTrainedModel):
    """Initialisation and loading shared by the LocalVMamba models."""

    config: LocalVMambaConfig
    base_model_prefix = "localvmamba"
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


class LocalVMambaModel(MapModel, LocalVMambaPreTrainedModel):
    """The encoder: images to the tokens of the last stage. `pooler_output` is the mean over its positions.

    Example:
        >>> model = LocalVMambaModel(LocalVMambaConfig())
        >>> tokens = model(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 49, 768]
    """

    def build(self, config: LocalVMambaConfig) -> None:
        rates = config.drop_path_rates(config.num_layers)
        stages, widths = [], config.hidden_sizes
        for i, (channels, depth) in enumerate(zip(widths, config.depths, strict=True)):
            first = sum(config.depths[:i])
            blocks = [_block(config, channels, k, rates[k]) for k in range(first, first + depth)]
            step = PatchMerging(widths[i - 1], channels, _norm(config, 4 * widths[i - 1])) if i else None
            stages.append(Stage(step, blocks))
        self.encoder = MapEncoder(_stem(config), stages)
        self.norm = _norm(config, config.hidden_size)


class LocalVMambaForImageClassification(ImageClassifier, LocalVMambaPreTrainedModel):
    """LocalVMamba with a linear classifier on the mean over the map."""

    encoder_class = LocalVMambaModel


class LocalVMambaBackbone(MapBackbone, LocalVMambaModel):
    """The maps of the stages that `config.out_features` names, each normed, for heads of segmentation and detection.

    Example:
        >>> config = LocalVMambaConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        >>> maps = LocalVMambaBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # [1, 96, 56, 56], ...
    """
