# SPDX-License-Identifier: Apache-2.0
"""Configuration of Vim (Vision Mamba, arXiv:2401.09417)."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from vlmamba.models.rotary import RotaryConfig
from vlmamba.models.vision_config import check_scan
from vlmamba.scans import Scan, get_scan

# published model -> what it differs in from the defaults: VimConfig(**PRESETS["small"])
PRESETS = {
    "tiny": {"drop_path_rate": 0.1},
    "tiny_stride8": {"patch_stride": 8, "drop_path_rate": 0.1},
    "small": {"hidden_size": 384, "drop_path_rate": 0.1},
    "small_stride8": {"hidden_size": 384, "patch_stride": 8, "drop_path_rate": 0.1},
    "base": {"hidden_size": 768, "drop_path_rate": 0.1},
}


@strict
class VimConfig(RotaryConfig):
    r"""Sizes and choices of a Vim encoder; the defaults are Vim-Tiny, `PRESETS` has the published ones.

    Args:
        patch_stride: step between patches; `patch_size` when None (the fine-tuned checkpoints overlap: 16 and 8).
        state_size: N of the selective scans.
        conv_kernel: taps of the causal convolutions.
        expand: inner width over `hidden_size`.
        time_step_rank: rank of the time step projections, "auto" for ceil(hidden_size / 16).
        scan: name of the scan, or of several that are combined. Without class tokens it orders the grid of patches;
            with them the sequence of all tokens, as a grid of one row: "bidirectional" or "raster" make sense there.
        scan_schedule: "all" reads every order in every layer, "cycle" one order a layer, in turn (as ZigMa does).
        shared_directions: "none" gives every direction its own parameters (bimamba v2), "inputs" all but A shared (v1).
        average_directions: divide the sum of the directions by their number.
        class_token: where the class token stands: "middle", "first", "both" (first and last, averaged) or "none".
        rotary, rotary_length: rotary position embeddings, see `RotaryConfig`.
        use_position_embeddings: add learned position embeddings.
        pooling: without a class token, what the classifier reads: "mean", "last", or every token, reduced by the
            largest logit ("max") or not at all ("none").
        norm_type: "rms_norm" or "layer_norm".
        layer_scale_init_value: initial scale of the mixers' outputs; no scale when None.
        residual_in_fp32: keep the residual stream in float32.
        hidden_size, num_hidden_layers, image_size, ...: as of every encoder, see `TokenEncoderConfig`.

    Example:
        >>> model = VimModel(VimConfig(hidden_size=192, num_hidden_layers=24))
    """

    model_type = "vim"

    patch_stride: int | None = None
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: str | int = "auto"
    scan: str | list[str] | tuple[str, ...] = "bidirectional"
    scan_schedule: Literal["all", "cycle"] = "all"
    shared_directions: Literal["none", "inputs"] = "none"
    average_directions: bool = True
    class_token: Literal["middle", "first", "both", "none"] = "middle"
    use_position_embeddings: bool = True
    pooling: Literal["mean", "last", "max", "none"] = "mean"
    norm_type: Literal["rms_norm", "layer_norm"] = "rms_norm"
    layer_scale_init_value: float | None = None
    residual_in_fp32: bool = True

    def __post_init__(self, **kwargs):
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        if self.patch_stride is None:
            self.patch_stride = self.patch_size
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Part of the validation of strict configs: every size is positive and the scan is known."""
        self.require_positive("hidden_size", "patch_size")  # of which the next two are made
        self.require_positive("time_step_rank", "patch_stride", "state_size", "conv_kernel", "expand")
        check_scan(self.scan)

    def scan_of_layer(self, index: int) -> Scan:
        """The orders that layer number `index` reads."""
        scan = get_scan(self.scan)
        return scan if self.scan_schedule == "all" else scan.only(index % scan.num_paths)

    @property
    def num_class_tokens(self) -> int:
        """Class tokens in the sequence: 0, 1 or 2."""
        return {"none": 0, "both": 2}.get(self.class_token, 1)

    @property
    def step(self) -> int:
        return self.patch_stride
