# SPDX-License-Identifier: Apache-2.0
"""Configuration of MSVMamba (Multi-Scale VMamba, arXiv:2405.14174)."""

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from vlmamba.models.vision_config import MapEncoderConfig, check_scan

# published model -> what it differs in from the defaults: MSVMambaConfig(**PRESETS["nano"])
PRESETS = {
    "nano": {"hidden_sizes": (48, 96, 192, 384), "depths": (1, 2, 5, 2), "drop_path_rate": 0.2},
    "micro": {"hidden_sizes": (64, 128, 256, 512), "depths": (1, 2, 5, 2), "drop_path_rate": 0.2},
    "tiny": {"drop_path_rate": 0.2},
}


@strict
class MSVMambaConfig(MapEncoderConfig):
    r"""Sizes and choices of an MSVMamba encoder; the defaults are MSVMamba-Tiny, `PRESETS` has the published ones.

    Args:
        hidden_sizes, depths, image_size, ...: as of every encoder in stages, see `MapEncoderConfig`.
        state_size: N of the selective scans.
        scan: name of the scan of the whole map, or of several that are combined; their orders have own parameters.
        low_scan: the same of the smaller map; these orders share parameters and are read as one sequence.
        low_stride: how many times smaller that map is, in each direction.
        conv_kernel, low_conv_kernel: sides of the depthwise convolutions in front of the two scans, odd.
        conv_bias: whether these have a bias.
        expand: inner width over the stage's width.
        time_step_rank: rank of the time step projections, "auto" for ceil(width / 16).
        hidden_act: activation of the mixers' convolutions and gate.
        squeeze_reduction: inner width over that of the squeeze and excitation after the scans; 0 for none.
        mlp_ratio: inner width of the convolutional MLPs over the stage's.
        dropout, mlp_dropout: of the mixers' outputs and in the MLPs.

    Example:
        >>> model = MSVMambaForImageClassification(MSVMambaConfig(num_labels=1000))  # MSVMamba-Tiny
    """

    model_type = "msvmamba"

    depths: list[int] | tuple[int, ...] = (1, 2, 9, 2)
    state_size: int = 1
    scan: str | list[str] | tuple[str, ...] = "raster"
    low_scan: str | list[str] | tuple[str, ...] = ("raster_reversed", "column", "column_reversed")
    low_stride: int = 2
    conv_kernel: int = 3
    low_conv_kernel: int = 7
    conv_bias: bool = True
    expand: float | int = 2.0
    time_step_rank: str | int = "auto"
    hidden_act: str = "silu"
    squeeze_reduction: int = 8
    mlp_ratio: float | int = 2.0
    dropout: float | int = 0.0
    mlp_dropout: float | int = 0.0

    def validate_sizes(self):
        """Part of the validation of strict configs: sizes are positive and names are known."""
        self.require_positive("state_size", "low_stride", "conv_kernel", "low_conv_kernel")
        if self.time_step_rank != "auto":
            self.require_positive("time_step_rank")
        for name in ("conv_kernel", "low_conv_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected an odd side")
        narrowest = min(self.hidden_sizes)
        for name in ("expand", "mlp_ratio"):
            if int(getattr(self, name) * narrowest) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive inner width")
        if not 0 <= self.squeeze_reduction <= int(self.expand * narrowest):
            raise ValueError(
                f"squeeze_reduction is {self.squeeze_reduction}, expected 0 to the narrowest inner width "
                f"{int(self.expand * narrowest)}"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}, expected an activation of transformers")
        check_scan(self.scan)
        check_scan(self.low_scan)
