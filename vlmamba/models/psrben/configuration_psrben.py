# SPDX-License-Identifier: Apache-2.0
"""Configuration of the pansharpening FusionMamba (arXiv:2404.07932)."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from vlmamba.models.remote_code import PackagedConfig


@strict
class PSRBenConfig(PackagedConfig, PreTrainedConfig):
    r"""Sizes of a pansharpening FusionMamba; the defaults are those of the model published for WorldView-3.

    Args:
        num_channels: bands of the multispectral image, and of the fused one.
        num_channels_x: bands of the panchromatic image.
        scale_factor: height and width of the panchromatic image over the multispectral one's.
        hidden_size: width of the first and last of five stages; the others have 2, 4 and 2 times as much.
        num_hidden_layers: mixers of either image in every stage, before the two meet.
        state_size: N of the selective scans.
        conv_kernel: taps of the mixers' causal convolutions.
        expand: inner width of the mixers over the stage's.
        negative_slope: of the leaky ReLUs.
        layer_norm_epsilon: epsilon of the norms.

    Example:
        >>> model = PSRBenForImageFusion(PSRBenConfig())
    """

    model_type = "psrben"

    num_channels: int = 8
    num_channels_x: int = 1
    scale_factor: int = 4
    hidden_size: int = 32
    num_hidden_layers: int = 1
    state_size: int = 8
    conv_kernel: int = 4
    expand: int = 1
    negative_slope: float | int = 0.01
    layer_norm_epsilon: float = 1e-5

    def validate_sizes(self):
        """Part of the validation of strict configs: every size is positive."""
        for name in (
            "num_channels",
            "num_channels_x",
            "scale_factor",
            "hidden_size",
            "num_hidden_layers",
            "state_size",
            "conv_kernel",
            "expand",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a positive integer")
