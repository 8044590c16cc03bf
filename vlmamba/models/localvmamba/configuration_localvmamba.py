# SPDX-License-Identifier: Apache-2.0
"""Configuration of LocalVMamba (LocalMamba, arXiv:2403.09338)."""

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from vlmamba.models.local_scans import LocalScansConfig, searched
from vlmamba.models.vision_config import MapEncoderConfig

_TINY = searched("0167 1345 1356 1234 0135 1345 0567 0123 0367 1247 2347 0135 3567 1357 1267")
_SMALL = searched(
    "0237 0126 1236 1256 1256 1347 1236 0236 0236 0237 0123 0234 2356 0124 1237 0123 0237 0237 0136 1356 1237 2367"
    " 0237 1234 0235 0126 0167 0345 0346 0237 1256 1367 0267"
)
_NARROW = (32, 64, 128, 256)

# published model -> what it differs in from the defaults: LocalVMambaConfig(**PRESETS["local_vssm_tiny"])
PRESETS = {
    "local_vssm_tiny": {"directions": _TINY, "drop_path_rate": 0.2},
    "local_vssm_small": {"directions": _SMALL, "depths": (2, 2, 27, 2), "drop_path_rate": 0.2},
    "local_vssm_tiny_search": {"hidden_sizes": _NARROW, "merge": "softmax", "drop_path_rate": 0.1},
    "local_vssm_small_search": {
        "hidden_sizes": _NARROW,
        "depths": (2, 2, 27, 2),
        "merge": "softmax",
        "drop_path_rate": 0.1,
    },
}


@strict
class LocalVMambaConfig(LocalScansConfig, MapEncoderConfig):
    r"""Sizes and choices of a LocalVMamba encoder; `PRESETS` has the published ones.

    Args:
        hidden_sizes, depths, image_size, ...: as of every encoder in stages, see `MapEncoderConfig`.
        directions, merge: which orders each block reads, first stage first, and how they become one, see
            `LocalScansConfig`.
        state_size: N of the selective scans.
        conv_kernel: side of the mixers' depthwise convolution, odd; 1 for none.
        conv_bias: whether that convolution has a bias.
        expand: inner width over the stage's width.
        time_step_rank: rank of the time step projections, "auto" for ceil(width / 16).
        hidden_act: activation of the mixers' convolution and gate.
        patch_norm: a norm after the patch embedding.
        dropout: of the mixers' outputs.

    Example:
        >>> model = LocalVMambaForImageClassification(LocalVMambaConfig(**PRESETS["local_vssm_tiny"]))
    """

    model_type = "localvmamba"

    depths: list[int] | tuple[int, ...] = (2, 2, 9, 2)
    state_size: int = 16
    conv_kernel: int = 3
    conv_bias: bool = True
    expand: float | int = 2.0
    time_step_rank: str | int = "auto"
    hidden_act: str = "silu"
    patch_norm: bool = True
    dropout: float | int = 0.0

    @property
    def num_layers(self) -> int:
        return sum(self.depths)

    def validate_sizes(self):
        """Part of the validation of strict configs: sizes are positive and names are known."""
        self.require_positive("state_size", "conv_kernel")
        if self.time_step_rank != "auto":
            self.require_positive("time_step_rank")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel is {self.conv_kernel}, expected an odd side")
        if int(self.expand * min(self.hidden_sizes)) < 8:
            raise ValueError(
                f"expand is {self.expand}, expected an inner width of at least 8, of which the gates keep an eighth"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}, expected an activation of transformers")
