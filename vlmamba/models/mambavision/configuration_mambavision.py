# SPDX-License-Identifier: Apache-2.0
"""Configuration of MambaVision (arXiv:2407.08083)."""

from huggingface_hub.dataclasses import strict

from vlmamba.models.vision_config import MapEncoderConfig, check_scan

_B = {
    "stem_size": 64,
    "hidden_sizes": (128, 256, 512, 1024),
    "depths": (3, 3, 10, 5),
    "layer_scale_init_value": 1e-5,
    "drop_path_rate": 0.3,
}
_L = {**_B, "hidden_sizes": (196, 392, 784, 1568), "num_attention_heads": (4, 8, 16, 32)}
_L2 = {**_L, "depths": (3, 3, 12, 5)}
_L3 = {**_L, "hidden_sizes": (256, 512, 1024, 2048), "depths": (3, 3, 20, 10), "drop_path_rate": 0.5}
_512 = {"image_size": 512, "window_sizes": (8, 8, 32, 16)}

# published model -> what it differs in from the defaults: MambaVisionConfig(**PRESETS["S"])
PRESETS = {
    "T": {"drop_path_rate": 0.2},
    "T2": {"depths": (1, 3, 11, 4), "drop_path_rate": 0.2},
    "S": {
        "stem_size": 64,
        "hidden_sizes": (96, 192, 384, 768),
        "depths": (3, 3, 7, 5),
        "drop_path_rate": 0.2,
    },
    "B": _B,
    "B_21k": _B,
    "L": _L,
    "L_21k": _L,
    "L2": _L2,
    "L2_512_21k": {**_L2, **_512},
    "L3_256_21k": {**_L3, "image_size": 256, "window_sizes": (8, 8, 16, 8)},
    "L3_512_21k": {**_L3, **_512},
}


@strict
class MambaVisionConfig(MapEncoderConfig):
    r"""Sizes and choices of a MambaVision encoder; the defaults are MambaVision-T, `PRESETS` has the published ones.

    The first stages convolve. In the others blocks see windows: the second half of a stage's blocks attends (rounded
    down), the first half scans.

    Args:
        hidden_sizes, depths, image_size, ...: as of every encoder in stages, see `MapEncoderConfig`.
        stem_size: channels between the two convolutions of the stem, each of step 2.
        num_conv_stages: how many stages convolve.
        window_sizes: side of the windows of each stage, in positions; those of convolving stages mean nothing.
        num_attention_heads: of each stage; those of convolving stages mean nothing.
        state_size: N of the selective scans.
        scan: name of the scan over a window, or of several that are combined; their orders have own parameters.
        conv_kernel: taps of the mixers' convolution, odd.
        expand: inner width of the mixers over the stage's.
        time_step_rank: rank of the time step projections, "auto" for ceil(width / 16).
        qkv_bias: whether the attention's first projection has a bias.
        qk_norm: norms of queries and keys.
        mlp_ratio: inner width of the MLPs over the stage's.
        layer_scale_init_value: initial scale of what mixers, attention and MLPs add; no scale when None.
        conv_layer_scale_init_value: the same of the convolving blocks.
        stem_norm_epsilon: epsilon of the stem's norms.
        dropout, attention_dropout: of the attention's and MLPs' outputs, and of the attention weights.

    Example:
        >>> model = MambaVisionForImageClassification(MambaVisionConfig(num_labels=1000))  # MambaVision-T
    """

    model_type = "mambavision"

    hidden_sizes: list[int] | tuple[int, ...] = (80, 160, 320, 640)
    depths: list[int] | tuple[int, ...] = (1, 3, 8, 4)
    stem_size: int = 32
    num_conv_stages: int = 2
    window_sizes: list[int] | tuple[int, ...] = (8, 8, 14, 7)
    num_attention_heads: list[int] | tuple[int, ...] = (2, 4, 8, 16)
    state_size: int = 8
    scan: str | list[str] | tuple[str, ...] = "raster"
    conv_kernel: int = 3
    expand: float | int = 1.0
    time_step_rank: str | int = "auto"
    qkv_bias: bool = True
    qk_norm: bool = False
    mlp_ratio: float | int = 4.0
    layer_scale_init_value: float | None = None
    conv_layer_scale_init_value: float | None = None
    stem_norm_epsilon: float = 1e-4
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0

    def num_attention_blocks(self, stage: int) -> int:
        """How many blocks at the end of a stage attend."""
        return 0 if stage < self.num_conv_stages else self.depths[stage] // 2

    def validate_sizes(self):
        """Part of the validation of strict configs: sizes are positive and fit each other."""
        self.require_positive("stem_size", "state_size", "conv_kernel", "window_sizes", "num_attention_heads")
        if self.time_step_rank != "auto":
            self.require_positive("time_step_rank")
        if self.patch_size != 4:
            raise ValueError(f"patch_size is {self.patch_size}, expected 4: the stem has two convolutions of step 2")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}, expected an odd number of taps")
        for name in ("window_sizes", "num_attention_heads"):
            if len(getattr(self, name)) != len(self.depths):
                raise ValueError(f"{name} has {len(getattr(self, name))} stages, expected {len(self.depths)} as depths")
        if not 0 <= self.num_conv_stages <= len(self.depths):
            raise ValueError(f"num_conv_stages is {self.num_conv_stages}, expected 0 to {len(self.depths)}")
        for i, (width, heads) in enumerate(zip(self.hidden_sizes, self.num_attention_heads, strict=True)):
            if self.num_attention_blocks(i) and width % heads:
                raise ValueError(f"num_attention_heads[{i}] is {heads}, expected a divisor of the width {width}")
        for name in ("expand", "mlp_ratio"):
            if int(getattr(self, name) * min(self.hidden_sizes)) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}, expected an inner width of at least 2")
        check_scan(self.scan)

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the first stage's map of a height x width image."""
        return tuple((side + 3) // 4 for side in (height, width))
