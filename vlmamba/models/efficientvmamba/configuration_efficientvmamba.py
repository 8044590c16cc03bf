# SPDX-License-Identifier: Apache-2.0
"""Configuration of EfficientVMamba (arXiv:2403.09977)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from vlmamba.models.vision_config import MapEncoderConfig, check_scan

# published model -> what it differs in from the defaults: EfficientVMambaConfig(**PRESETS["small"])
PRESETS = {
    "tiny": {"drop_path_rate": 0.2},
    "small": {"hidden_sizes": (64, 128, 256, 512), "drop_path_rate": 0.2},
    "base": {"hidden_sizes": (96, 192, 384, 768), "depths": (2, 2, 9, 2), "drop_path_rate": 0.2},
    # what the published settings call small; the paper's has 11 M parameters, as "small" here
    "small_width96": {"hidden_sizes": (96, 192, 384, 768), "drop_path_rate": 0.2},
}


@strict
class EfficientVMambaConfig(MapEncoderConfig):
    r"""Sizes and choices of an EfficientVMamba encoder; the defaults are EfficientVMamba-T.

    Args:
        hidden_sizes, depths, image_size, ...: as of every encoder in stages, see `MapEncoderConfig`.
        num_scan_stages: so many stages begin, of scans beside convolutions; those that follow are convolutional.
        scan: name of the scan, or of several that are combined; their orders have own parameters and are summed, where
            they are disjoint stitched together.
        state_size: N of the selective scans.
        conv_kernel: side of the mixers' depthwise convolution, odd; 1 for none.
        expand: inner width over the stage's width, of the scans.
        time_step_rank: rank of the time step projections, "auto" for ceil(width / 16).
        hidden_act: activation of the mixers' convolution and gate.
        mlp_ratio: inner width of MLPs in the blocks with scans over the stage's; 0 for none.
        conv_expand: inner width over the stage's width, of the convolutional blocks.
        patch_norm: a norm after the patch embedding.
        downsample: between stages: "merge" (2 x 2 patch merging), or "conv2", a convolution of side and step 2.

    Example:
        >>> model = EfficientVMambaForImageClassification(EfficientVMambaConfig(num_labels=1000))
    """

    model_type = "efficientvmamba"

    hidden_sizes: list[int] | tuple[int, ...] = (48, 96, 192, 384)
    depths: list[int] | tuple[int, ...] = (2, 2, 4, 2)
    num_scan_stages: int = 2
    scan: str | list[str] | tuple[str, ...] = "es2d_step2"
    state_size: int = 16
    conv_kernel: int = 3
    expand: float | int = 2.0
    time_step_rank: str | int = "auto"
    hidden_act: str = "silu"
    mlp_ratio: float | int = 0.0
    conv_expand: int = 4
    patch_norm: bool = True
    downsample: Literal["merge", "conv2"] = "merge"

    def validate_sizes(self):
        """Part of the validation of strict configs: sizes are positive and names are known."""
        self.require_positive("state_size", "conv_kernel", "conv_expand")
        if self.time_step_rank != "auto":
            self.require_positive("time_step_rank")
        if not 0 <= self.num_scan_stages <= len(self.depths):
            raise ValueError(f"num_scan_stages is {self.num_scan_stages}, expected 0 to {len(self.depths)}")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}, expected an odd side")
        if min(self.hidden_sizes) < 8:
            raise ValueError(f"hidden_sizes is {self.hidden_sizes}, expected at least 8: gates keep an eighth")
        if int(self.expand * min(self.hidden_sizes)) < 1:
            raise ValueError(f"expand is {self.expand}, expected a positive inner width")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}, expected an activation of transformers")
        check_scan(self.scan)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last stage's map of a height x width image."""
        sides = self.patch_grid(height, width)
        for _ in self.depths[1:]:
            sides = tuple(side // 2 if self.downsample == "conv2" else (side + 1) // 2 for side in sides)
        return sides
