# SPDX-License-Identifier: Apache-2.0
"""Configuration of Mamba-ND (arXiv:2402.05892) for images."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from vlmamba.models.vision_config import TokenEncoderConfig, check_scan
from vlmamba.scans import Scan, get_scan

# published model -> what it differs in from the defaults: MambaNDConfig(**PRESETS["base"])
PRESETS = {
    "small": {"drop_path_rate": 0.1, "dropout": 0.1},
    "base": {"hidden_size": 768, "drop_path_rate": 0.1, "dropout": 0.1},
}


@strict
class MambaNDConfig(TokenEncoderConfig):
    r"""Sizes and choices of a two-dimensional Mamba-ND encoder; the defaults are Mamba2D-S/8, `PRESETS` has the other.

    Args:
        hidden_size, num_hidden_layers, image_size, ...: as of every encoder, see `TokenEncoderConfig`.
        downsample_layers: numbers of the layers after which 2 x 2 tokens become one of the same width.
        state_size: N of the selective scans.
        conv_kernel: taps of the causal convolutions.
        expand: inner width over `hidden_size`.
        time_step_rank: rank of the time step projections, "auto" for ceil(hidden_size / 16).
        scan: name of the scan over the patches, or of several that are combined; layer i reads order i, and so on in
            turn.
        interpolation: how position embeddings are resized for images of another size, "bicubic" or "bilinear".
        use_final_norm: norm the tokens of the last layer.
        final_norm_epsilon: epsilon of that norm and of the pooled vector's.
        dropout: of the tokens, after positions were added.

    Example:
        >>> model = MambaNDForImageClassification(MambaNDConfig(**PRESETS["small"], num_labels=1000))
    """

    model_type = "mamband"

    hidden_size: int = 384
    patch_size: int = 8
    downsample_layers: list[int] | tuple[int, ...] = (9,)
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: str | int = "auto"
    scan: str | list[str] | tuple[str, ...] = "mamba_nd_2d_layers0_3"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    use_final_norm: bool = True
    final_norm_epsilon: float = 1e-6
    dropout: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Part of the validation of strict configs: every size is positive and the scan is known."""
        self.require_positive("hidden_size")  # of which the next is made
        self.require_positive("time_step_rank", "state_size", "conv_kernel", "expand")
        for layer in self.downsample_layers:
            if not 0 <= layer < self.num_hidden_layers:
                raise ValueError(f"downsample_layers has {layer}, expected layers 0 to {self.num_hidden_layers - 1}")
        check_scan(self.scan)

    def scan_of_layer(self, index: int) -> Scan:
        """The order that layer number `index` reads."""
        scan = get_scan(self.scan)
        return scan.only(index % scan.num_paths)

    @property
    def stage_strides(self) -> list[float]:
        strides = [self.patch_size]
        for layer in range(self.num_hidden_layers):
            strides.append(strides[-1] * (2 if layer in self.downsample_layers else 1))
        return strides

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of `image_size`."""
        return super().grid(*self.image_sides)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last layer's tokens of a height x width image."""
        sides = super().grid(height, width)
        for _ in set(self.downsample_layers):
            sides = tuple((side + 1) // 2 for side in sides)
        return sides
