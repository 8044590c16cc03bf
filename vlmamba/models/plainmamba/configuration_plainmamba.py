# SPDX-License-Identifier: Apache-2.0
"""Configuration of PlainMamba (arXiv:2403.17695)."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from vlmamba.models.vision_config import TokenEncoderConfig
from vlmamba.scans import get_scan

# published model -> what it differs in from the defaults: PlainMambaConfig(**PRESETS["L2"])
PRESETS = {
    "L1": {"drop_path_rate": 0.2},
    "L2": {"hidden_size": 384, "num_stem_convolutions": 2, "convolved_layers": (), "drop_path_rate": 0.2},
    "L3": {
        "hidden_size": 448,
        "num_hidden_layers": 36,
        "num_stem_convolutions": 2,
        "convolved_layers": (),
        "drop_path_rate": 0.4,
    },
}


@strict
class PlainMambaConfig(TokenEncoderConfig):
    r"""Sizes and choices of a PlainMamba encoder; the defaults are PlainMamba-L1, `PRESETS` has the others.

    Args:
        hidden_size, num_hidden_layers, image_size, ...: as of every encoder, see `TokenEncoderConfig`.
        num_stem_convolutions: 3 x 3 convolutions between the stem's first, of step 2, and that of the patches.
        convolved_layers: numbers of the layers after which a depthwise 3 x 3 convolution follows, with a batch norm.
        state_size: N of the selective scans.
        conv_kernel: side of the mixers' depthwise convolution, odd.
        conv_bias: whether that convolution has a bias.
        expand: inner width over `hidden_size`.
        time_step_rank: rank of the time step projections, "auto" for ceil(hidden_size / 16).
        projection_bias: whether the mixers' in_proj and out_proj have a bias.
        scan: name of the scan over the patches, or of several that are combined, all of kind "grid".
        use_move_embeddings: add a learned vector to B for the move (right, left, up, down, or none yet) by which an
            order comes to a patch.
        permute_inputs: an order takes dt, B and C of the patch that it visits, as the paper says. The published
            weights were trained without: the t-th patch of an order met dt, B and C of the t-th patch of the grid.
        double_time_step_bias: add the bias of the time steps twice, as the published weights were trained.
        use_position_embeddings: add learned position embeddings.
        interpolation: how they are resized for images of another size, "bicubic" or "bilinear".
        norm_type: of the layers, "layer_norm" or "rms_norm".
        use_final_norm: norm the tokens of the last layer.
        final_norm_epsilon: epsilon of that norm.
        layer_scale_init_value: initial scale of the mixers' outputs; no scale when None.
        dropout: of the tokens, after positions were added.

    Example:
        >>> model = PlainMambaForImageClassification(PlainMambaConfig(**PRESETS["L2"], num_labels=1000))
    """

    model_type = "plainmamba"

    num_stem_convolutions: int = 1
    convolved_layers: list[int] | tuple[int, ...] = (0,)
    state_size: int = 16
    conv_kernel: int = 7
    conv_bias: bool = True
    expand: float | int = 2
    time_step_rank: str | int = "auto"
    projection_bias: bool = True
    scan: str | list[str] | tuple[str, ...] = "plainmamba4"
    use_move_embeddings: bool = True
    permute_inputs: bool = False
    double_time_step_bias: bool = True
    use_position_embeddings: bool = True
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    use_final_norm: bool = True
    final_norm_epsilon: float = 1e-6
    layer_scale_init_value: float | None = None
    dropout: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Part of the validation of strict configs: every size is positive and the scan is known."""
        self.require_positive("hidden_size", "time_step_rank", "state_size", "conv_kernel")
        if self.patch_size % 2:
            raise ValueError(f"patch_size is {self.patch_size}, expected an even side, as the stem halves the image")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}, expected an odd side")
        if int(self.expand * self.hidden_size) < 1:
            raise ValueError(f"expand is {self.expand}, expected a positive inner width")
        if self.num_stem_convolutions < 0:
            raise ValueError(f"num_stem_convolutions is {self.num_stem_convolutions}, expected none or more")
        for layer in self.convolved_layers:
            if not 0 <= layer < self.num_hidden_layers:
                raise ValueError(f"convolved_layers has {layer}, expected layers 0 to {self.num_hidden_layers - 1}")
        kind = get_scan(self.scan).kind
        if kind != "grid":
            raise ValueError(f"scan is {self.scan!r}, of kind {kind!r}; expected one of kind grid")

    @property
    def position_grid(self) -> tuple[int, int]:
        """Rows and columns for which there are position embeddings; officially half of an odd side is rounded down."""
        return self.grid(*(side - side % 2 for side in self.image_sides))
