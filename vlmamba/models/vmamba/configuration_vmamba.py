# SPDX-License-Identifier: Apache-2.0
"""Configuration of VMamba (arXiv:2401.10166)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from vlmamba.scans import get_scan

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
class VMambaConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""Sizes and choices of a VMamba encoder; the defaults are VMamba-T, `PRESETS` has the other published ones.

    Args:
        hidden_sizes: width of each stage.
        depths: number of blocks of each stage.
        image_size: side of the input images, or (height, width): the size of the position embeddings, if there are any.
        patch_size: step between the positions of the first stage, in pixels.
        num_channels: image channels.
        state_size: N of the selective scans.
        conv_kernel: side of the mixers' depthwise convolution, odd; 1 for none.
        conv_bias: whether that convolution has a bias.
        expand: inner width over the stage's width.
        time_step_rank: rank of the time step projections, "auto" for ceil(width / 16).
        scan: name of the scan over the map: "cross_scan" or any registered one; its directions have own parameters.
        cascade: scan rows, each by itself, and then columns of the result; only with "cross_scan".
        hidden_act: activation of the mixers' convolution and gate.
        gate: what multiplies the mixers' result: an "activated" or "linear" projection of their input, or "none".
        out_norm: what follows the scans: "layer_norm", "conv", "layer_norm_conv", "softmax", "sigmoid" or "none".
        activate_output: GELU after it.
        mlp_ratio: inner width of the MLPs over the stage's; 0 for blocks without an MLP.
        mlp_act: their activation.
        mlp_gated: MLP(x) = fc2(a * act(b)) with a, b of one projection.
        norm_type: "layer_norm" or "batch_norm".
        layer_norm_epsilon: epsilon of the norms.
        patch_embedding: "single" convolution of disjoint patches, or "double": two overlapping ones, each halving.
        patch_norm: norms in the patch embedding.
        downsample: between stages: "merge" (2 x 2 patch merging), or a convolution of step 2, "conv2" or "conv3".
        use_position_embeddings: add learned position embeddings.
        dropout, mlp_dropout: of the mixers' and MLPs' outputs.
        drop_path_rate: stochastic depth of the last block; earlier ones rise linearly from 0.
        initializer_range: standard deviation of the truncated normal for linear layers and position embeddings.
        initialization: of time steps and state matrices: "mamba", "normal" or "uniform".
        out_features, out_indices: stages that a backbone gives, of "stem", "stage1", ...; the last by default.

    Example:
        >>> model = VMambaForImageClassification(VMambaConfig(num_labels=1000))  # VMamba-T
    """

    model_type = "vmamba"
    base_config_key = "vision_config"

    hidden_sizes: list[int] | tuple[int, ...] = _SMALL
    depths: list[int] | tuple[int, ...] = (2, 2, 8, 2)
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 4
    num_channels: int = 3
    state_size: int = 1
    conv_kernel: int = 3
    conv_bias: bool = False
    expand: float | int = 1.0
    time_step_rank: str | int = "auto"
    scan: str = "cross_scan"
    cascade: bool = False
    hidden_act: str = "silu"
    gate: Literal["activated", "linear", "none"] = "none"
    out_norm: Literal["layer_norm", "conv", "layer_norm_conv", "softmax", "sigmoid", "none"] = "layer_norm"
    activate_output: bool = False
    mlp_ratio: float | int = 4.0
    mlp_act: str = "gelu"
    mlp_gated: bool = False
    norm_type: Literal["layer_norm", "batch_norm"] = "layer_norm"
    layer_norm_epsilon: float = 1e-5
    patch_embedding: Literal["single", "double"] = "double"
    patch_norm: bool = True
    downsample: Literal["merge", "conv2", "conv3"] = "conv3"
    use_position_embeddings: bool = False
    dropout: float | int = 0.0
    mlp_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    initialization: Literal["mamba", "normal", "uniform"] = "mamba"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem", *(f"stage{i + 1}" for i in range(len(self.depths)))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Part of the validation of strict configs: sizes are positive and names are known."""
        sizes = ("patch_size", "num_channels", "state_size", "conv_kernel")
        values = {name: getattr(self, name) for name in sizes}
        values |= {f"hidden_sizes[{i}]": v for i, v in enumerate(self.hidden_sizes)}
        values |= {f"depths[{i}]": v for i, v in enumerate(self.depths)}
        if self.time_step_rank != "auto":
            values["time_step_rank"] = self.time_step_rank
        for name, value in values.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a positive integer")
        if not self.depths or len(self.depths) != len(self.hidden_sizes):
            raise ValueError(f"depths has {len(self.depths)} stages, expected {len(self.hidden_sizes)} as hidden_sizes")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}, expected an odd side")
        if self.patch_embedding == "double" and (self.patch_size % 2 or self.hidden_sizes[0] % 2):
            raise ValueError("patch_size and hidden_sizes[0] are halved by the double patch embedding, expected even")
        if int(self.expand * min(self.hidden_sizes)) < 1:
            raise ValueError(f"expand is {self.expand}, expected a positive inner width")
        for name in ("hidden_act", "mlp_act"):
            if getattr(self, name) not in ACT2FN:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected an activation of transformers")
        get_scan(self.scan)
        if self.cascade and self.scan != "cross_scan":
            raise ValueError(f"scan is {self.scan!r}, expected 'cross_scan' with cascade")
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"image_size is {self.image_size!r}, expected a side or (height, width)")

    @property
    def hidden_size(self) -> int:
        """Width of the last stage: of the tokens that the encoder gives."""
        return self.hidden_sizes[-1]

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

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the first stage's map of an image of `image_size`."""
        size = self.image_size
        return self.patch_grid(*((size, size) if isinstance(size, int) else size))
