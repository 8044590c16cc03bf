# SPDX-License-Identifier: Apache-2.0
"""Configuration of MambaDFuse (arXiv:2404.08406)."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from vlmamba.layers.fusion.losses import GUIDED_LOSSES
from vlmamba.models.remote_code import PackagedConfig


@strict
class MambaDFuseConfig(PackagedConfig, PreTrainedConfig):
    r"""Sizes of a MambaDFuse; the defaults are the published model's.

    Args:
        num_channels: channels of either image and of the fused one; the published models fuse luminance.
        hidden_size: width of the features, at least 4.
        num_hidden_layers: Mamba blocks of either image's encoder.
        num_exchange_layers: blocks in which the images exchange channels.
        num_fusion_layers: blocks in which the two guide the fused features.
        num_reconstruction_layers: Mamba blocks of the decoder.
        state_size: N of the selective scans.
        conv_kernel: taps of the mixers' causal convolutions.
        expand: inner width over `hidden_size`.
        time_step_rank: rank of the time step projections, "auto" for ceil(hidden_size / 16).
        negative_slope: of the leaky ReLUs between the 3 x 3 convolutions.
        layer_norm_epsilon: epsilon of the norms.
        fusion_loss: what training aims at: "infrared" for infrared and visible images, or "medical".

    Example:
        >>> model = MambaDFuseForImageFusion(MambaDFuseConfig())
    """

    model_type = "mambadfuse"

    num_channels: int = 1
    hidden_size: int = 60
    num_hidden_layers: int = 8
    num_exchange_layers: int = 2
    num_fusion_layers: int = 5
    num_reconstruction_layers: int = 8
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: str | int = "auto"
    negative_slope: float | int = 0.2
    layer_norm_epsilon: float = 1e-5
    fusion_loss: str = "infrared"

    def __post_init__(self, **kwargs):
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Part of the validation of strict configs: every size is positive."""
        for name in (
            "num_channels",
            "num_hidden_layers",
            "num_exchange_layers",
            "num_fusion_layers",
            "num_reconstruction_layers",
            "state_size",
            "conv_kernel",
            "expand",
            "time_step_rank",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a positive integer")
        if self.hidden_size < 4:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected 4 or more")
        if self.fusion_loss not in GUIDED_LOSSES:
            raise ValueError(f"fusion_loss is {self.fusion_loss!r}, expected one of {', '.join(GUIDED_LOSSES)}")
