# SPDX-License-Identifier: Apache-2.0
"""Configuration of Vim (Vision Mamba, arXiv:2401.09417)."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from vlmamba.scans import get_scan


@strict
class VimConfig(PreTrainedConfig):
    r"""Sizes and choices of a Vim encoder; the defaults are Vim-Tiny.

    Args:
        hidden_size: width of the tokens.
        num_hidden_layers: number of blocks.
        image_size: side of the input images, or (height, width), in pixels.
        patch_size: side of a patch, in pixels.
        patch_stride: step between patches; `patch_size` when None (the fine-tuned checkpoints overlap: 16 and 8).
        num_channels: image channels.
        state_size: N of the selective scans.
        conv_kernel: taps of the causal convolutions.
        expand: inner width over `hidden_size`.
        time_step_rank: rank of the time step projections, "auto" for ceil(hidden_size / 16).
        scan: name of the scan over the token sequence, a grid of one row that includes class tokens: "bidirectional",
            "raster" or a registered one.
        shared_directions: "none" gives every direction its own parameters (bimamba v2), "inputs" all but A shared (v1).
        average_directions: divide the sum of the directions by their number.
        class_token: where the class token stands: "middle", "first", "both" (first and last, averaged) or "none".
        use_position_embeddings: add learned position embeddings.
        pooling: without a class token, what the classifier reads: "mean", "last", or every token, reduced by the
            largest logit ("max") or not at all ("none").
        norm_type: "rms_norm" or "layer_norm".
        layer_norm_epsilon: epsilon of the norms.
        layer_scale_init_value: initial scale of the mixers' outputs; no scale when None.
        residual_in_fp32: keep the residual stream in float32.
        drop_path_rate: stochastic depth of the last block; earlier ones rise linearly from 0.
        initializer_range: standard deviation of the truncated normal for embeddings and heads.

    Example:
        >>> model = VimModel(VimConfig(hidden_size=192, num_hidden_layers=24))
    """

    model_type = "vim"
    base_config_key = "vision_config"

    hidden_size: int = 192
    num_hidden_layers: int = 24
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    patch_stride: int | None = None
    num_channels: int = 3
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: str | int = "auto"
    scan: str = "bidirectional"
    shared_directions: Literal["none", "inputs"] = "none"
    average_directions: bool = True
    class_token: Literal["middle", "first", "both", "none"] = "middle"
    use_position_embeddings: bool = True
    pooling: Literal["mean", "last", "max", "none"] = "mean"
    norm_type: Literal["rms_norm", "layer_norm"] = "rms_norm"
    layer_norm_epsilon: float = 1e-5
    layer_scale_init_value: float | None = None
    residual_in_fp32: bool = True
    drop_path_rate: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        if self.patch_stride is None:
            self.patch_stride = self.patch_size
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Part of the validation of strict configs: every size is positive and the scan is known."""
        sizes = ("hidden_size", "patch_size", "patch_stride", "num_channels", "state_size", "conv_kernel", "expand")
        for name in (*sizes, "time_step_rank"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a positive integer")
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"image_size is {self.image_size!r}, expected a side or (height, width)")
        if min(self.grid_size) < 1:
            raise ValueError(f"image_size is {self.image_size!r}, expected at least patch_size {self.patch_size}")
        get_scan(self.scan)

    @property
    def num_class_tokens(self) -> int:
        """Class tokens in the sequence: 0, 1 or 2."""
        return {"none": 0, "both": 2}.get(self.class_token, 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a height x width image."""
        return tuple((side - self.patch_size) // self.patch_stride + 1 for side in (height, width))

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of `image_size`."""
        size = self.image_size
        return self.grid(*((size, size) if isinstance(size, int) else size))
