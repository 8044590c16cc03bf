# SPDX-License-Identifier: Apache-2.0
"""Configuration of Mamba-R (Vision Mamba with registers, arXiv:2405.14858)."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from vlmamba.models.vision_config import TokenEncoderConfig, check_scan

# published model -> what it differs in from the defaults: MambaRConfig(**PRESETS["mambar_base_patch16_224"])
PRESETS = {
    "mambar_tiny_patch16_224": {},
    "mambar_small_patch16_224": {"hidden_size": 384, "register_reduction": 2},
    "mambar_base_patch16_224": {"hidden_size": 768, "register_reduction": 4},
    "mambar_large_patch16_224": {
        "hidden_size": 1024,
        "num_hidden_layers": 48,
        "num_registers": 16,
        "register_reduction": 8,
    },
}


@strict
class MambaRConfig(TokenEncoderConfig):
    r"""Sizes and choices of a Mamba-R encoder; the defaults are the tiny one, `PRESETS` has the other published ones.

    Args:
        hidden_size, num_hidden_layers, image_size, ...: as of every encoder, see `TokenEncoderConfig`.
        num_registers: tokens spread evenly among the patches; together they are what the classifier reads.
        register_reduction: divides the registers' width before the classifier; 1 leaves them as they are.
        state_size: N of the selective scans.
        conv_kernel: taps of the causal convolutions.
        expand: inner width over `hidden_size`.
        time_step_rank: rank of the time step projections, "auto" for ceil(hidden_size / 16).
        scan: name of the scan over the sequence of all tokens, as a grid of one row, or of several that are combined.
        norm_type: "rms_norm" or "layer_norm".
        residual_in_fp32: keep the residual stream in float32.
        dropout: of the tokens, after positions were added.

    Example:
        >>> model = MambaRForImageClassification(MambaRConfig(**PRESETS["mambar_small_patch16_224"], num_labels=1000))
    """

    model_type = "mambar"

    num_registers: int = 12
    register_reduction: int = 1
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: str | int = "auto"
    scan: str | list[str] | tuple[str, ...] = "bidirectional"
    norm_type: Literal["rms_norm", "layer_norm"] = "rms_norm"
    residual_in_fp32: bool = True
    dropout: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Part of the validation of strict configs: every size is positive and the scan is known."""
        self.require_positive("hidden_size", "num_registers", "register_reduction")
        self.require_positive("time_step_rank", "state_size", "conv_kernel", "expand")
        if self.hidden_size % self.register_reduction:
            raise ValueError(
                f"register_reduction is {self.register_reduction}, expected a divisor of hidden_size {self.hidden_size}"
            )
        check_scan(self.scan)

    @property
    def pooled_size(self) -> int:
        """Width of all registers one after another."""
        return self.num_registers * (self.hidden_size // self.register_reduction)
