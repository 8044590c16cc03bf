# SPDX-License-Identifier: Apache-2.0
"""Configuration of VMamba (arXiv:2401.10166)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from vlmamba.layers.merging import MERGES
from vlmamba.models.vision_config import MapEncoderConfig, check_scan

_FIRST = {
    "state_size": 16,
    "conv_bias": True,
    "expand": 2.0,
    "gate": "activated",
    "mlp_ratio": 0.0,
    "patch_embedding": "single",
    "downsample": "merge",
}
_SMALL, _BASE = (96, 192, 384, 768), (128, 256, 512, 1024)

# published model -> what it differs in from the defaults: VMambaConfig(**PRESETS["small"])
PRESETS = {
    "tiny": {"drop_path_rate": 0.2},
    "small": {"depths": (2, 2, 15, 2), "expand": 2.0, "drop_path_rate": 0.3},
    "base": {"hidden_sizes": _BASE, "depths": (2, 2, 15, 2), "expand": 2.0, "drop_path_rate": 0.6},
    "tiny_s2l5": {"depths": (2, 2, 5, 2), "expand": 2.0, "drop_path_rate": 0.2},
    "small_s1l20": {"depths": (2, 2, 20, 2), "drop_path_rate": 0.3},
    "base_s1l20": {"hidden_sizes": _BASE, "depths": (2, 2, 20, 2), "drop_path_rate": 0.5},
    "vssm_tiny": {**_FIRST, "depths": (2, 2, 9, 2), "drop_path_rate": 0.2},
    "vssm_small": {**_FIRST, "depths": (2, 2, 27, 2), "drop_path_rate": 0.3},
    "vssm_base": {**_FIRST, "hidden_sizes": _BASE, "depths": (2, 2, 27, 2), "drop_path_rate": 0.5},
}


@strict
class VMambaConfig(MapEncoderConfig):
    r"""Sizes and choices of a VMamba encoder; the defaults are VMamba-T, `PRESETS` has the other published ones.

    Args:
        hidden_sizes, depths, image_size, ...: as of every encoder in stages, see `MapEncoderConfig`.
        state_size: N of the selective scans.
        conv_kernel: side of the mixers' depthwise convolution, odd; 1 for none.
        conv_bias: whether that convolution has a bias.
        expand: inner width over the stage's width.
        time_step_rank: rank of the time step projections, "auto" for ceil(width / 16).
        scan: name of the scan over the map, or of several that are combined; their directions have own parameters.
        merge: how the directions become one, of `vlmamba.layers.merging.MERGES`.
        headwise: `scan` names one scan for every head, a share of the channels (GroupMamba, MHS-VM).
        cascade: scan rows, each by itself, and then columns of the result; only with "cross_scan".
        hidden_act: activation of the mixers' convolution and gate.
        gate: what multiplies the mixers' result: an "activated" or "linear" projection of their input, or "none".
        out_norm: what follows the scans: "layer_norm", "conv", "layer_norm_conv", "softmax", "sigmoid" or "none".
        activate_output: GELU after it.
        mlp_ratio: inner width of the MLPs over the stage's; 0 for blocks without an MLP.
        mlp_act: their activation.
        mlp_gated: MLP(x) = fc2(a * act(b)) with a, b of one projection.
        norm_type: "layer_norm" or "batch_norm".
        patch_embedding: "single" convolution of disjoint patches, or "double": two that overlap, each of half the size.
        patch_norm: norms in the patch embedding.
        downsample: between stages: "merge" (2 x 2 patch merging), or a convolution of step 2, "conv2" or "conv3".
        use_position_embeddings: add learned position embeddings.
        dropout, mlp_dropout: of the mixers' and MLPs' outputs.
        initialization: of time steps and state matrices: "mamba", "normal" or "uniform".

    Example:
        >>> model = VMambaForImageClassification(VMambaConfig(num_labels=1000))  # VMamba-T
    """

    model_type = "vmamba"

    state_size: int = 1
    conv_kernel: int = 3
    conv_bias: bool = False
    expand: float | int = 1.0
    time_step_rank: str | int = "auto"
    scan: str | list[str] | tuple[str, ...] = "cross_scan"
    merge: str = "sum"
    headwise: bool = False
    cascade: bool = False
    hidden_act: str = "silu"
    gate: Literal["activated", "linear", "none"] = "none"
    out_norm: Literal["layer_norm", "conv", "layer_norm_conv", "softmax", "sigmoid", "none"] = "layer_norm"
    activate_output: bool = False
    mlp_ratio: float | int = 4.0
    mlp_act: str = "gelu"
    mlp_gated: bool = False
    norm_type: Literal["layer_norm", "batch_norm"] = "layer_norm"
    patch_embedding: Literal["single", "double"] = "double"
    patch_norm: bool = True
    downsample: Literal["merge", "conv2", "conv3"] = "conv3"
    use_position_embeddings: bool = False
    dropout: float | int = 0.0
    mlp_dropout: float | int = 0.0
    initialization: Literal["mamba", "normal", "uniform"] = "mamba"

    def validate_sizes(self):
        """Part of the validation of strict configs: sizes are positive and names are known."""
        self.require_positive("state_size", "conv_kernel")
        if self.time_step_rank != "auto":
            self.require_positive("time_step_rank")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}, expected an odd side")
        if self.patch_embedding == "double" and (self.patch_size % 2 or self.hidden_sizes[0] % 2):
            raise ValueError("patch_size and hidden_sizes[0] are halved by the double patch embedding, expected even")
        if int(self.expand * min(self.hidden_sizes)) < 1:
            raise ValueError(f"expand is {self.expand}, expected a positive inner width")
        for name in ("hidden_act", "mlp_act"):
            if getattr(self, name) not in ACT2FN:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected an activation of transformers")
        check_scan(self.scan)
        if self.merge not in MERGES:
            raise ValueError(f"merge is {self.merge!r}, expected one of {', '.join(MERGES)}")
        if self.cascade and (self.scan != "cross_scan" or self.merge != "sum" or self.headwise):
            raise ValueError(f"scan is {self.scan!r}, expected 'cross_scan', summed, with cascade")
        if self.headwise and isinstance(self.scan, str):
            raise ValueError(f"scan is {self.scan!r}, expected a list with one scan for every head with headwise")

    @property
    def stage_strides(self) -> list[float]:
        first = self.patch_size if self.patch_embedding == "single" else (self.patch_size // 2) ** 2
        return [first, *(first * 2**i for i in range(len(self.depths)))]

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the first stage's map of a height x width image."""
        if self.patch_embedding == "single":
            return height // self.patch_size, width // self.patch_size
        step = self.patch_size // 2
        for _ in range(2):
            height, width = ((side + 1 - step) // step + 1 for side in (height, width))
        return height, width

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last stage's map of a height x width image."""
        sides = self.patch_grid(height, width)
        for _ in self.depths[1:]:
            sides = tuple(side // 2 if self.downsample == "conv2" else (side + 1) // 2 for side in sides)
        return sides
