# SPDX-License-Identifier: Apache-2.0
"""Configuration of LocalVim (LocalMamba, arXiv:2403.09338)."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict

from vlmamba.models.local_scans import LocalScansConfig, searched
from vlmamba.models.rotary import RotaryConfig
from vlmamba.scans import Scan, get_scan
from vlmamba.scans.local import over_tokens

_SEARCHED = searched(
    "0367 1567 0126 0123 0123 0123 1236 1235 0123 0123 0234 0235 0136 1234 0123 0245 2346 0124 0156 2345"
)

# published model -> what it differs in from the defaults: LocalVimConfig(**PRESETS["local_vim_tiny"])
PRESETS = {
    "local_vim_tiny": {"directions": _SEARCHED, "drop_path_rate": 0.1},
    "local_vim_tiny_wo_search": {"drop_path_rate": 0.1},
    "local_vim_tiny_middle_cls_token": {
        "directions": _SEARCHED,
        "class_token": "middle",
        "rotary": "none",
        "drop_path_rate": 0.1,
    },
    # the published script defines it twice: the later definition, without a search, is the one in force
    "local_vim_small": {"hidden_size": 384, "drop_path_rate": 0.1},
    "local_vim_tiny_search": {"hidden_size": 128, "merge": "softmax", "drop_path_rate": 0.1},
}


@strict
class LocalVimConfig(LocalScansConfig, RotaryConfig):
    r"""Sizes and choices of a LocalVim encoder; defaults are LocalVim-Tiny's sizes, `PRESETS` has the published ones.

    Args:
        directions, merge: which orders each layer reads, and how they become one, see `LocalScansConfig`.
        state_size: N of the selective scans.
        conv_kernel: taps of the causal convolutions.
        expand: inner width over `hidden_size`.
        time_step_rank: rank of the time step projections, "auto" for ceil(hidden_size / 16).
        class_token: "middle" of the sequence, or "none".
        rotary, rotary_length: rotary position embeddings, see `RotaryConfig`.
        use_position_embeddings: add learned position embeddings.
        dropout: of the tokens, after positions were added.
        pooling: without a class token, what the classifier reads: "mean", "last", or every token ("none").
        norm_type: "rms_norm" or "layer_norm".
        residual_in_fp32: keep the residual stream in float32.
        hidden_size, num_hidden_layers, image_size, ...: as of every encoder, see `TokenEncoderConfig`.

    Example:
        >>> model = LocalVimModel(LocalVimConfig(**PRESETS["local_vim_tiny"]))
    """

    model_type = "localvim"

    num_hidden_layers: int = 20
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: str | int = "auto"
    class_token: Literal["middle", "none"] = "none"
    rotary: Literal["stream", "updates", "none"] = "stream"
    use_position_embeddings: bool = True
    dropout: float | int = 0.0
    pooling: Literal["mean", "last", "none"] = "mean"
    norm_type: Literal["rms_norm", "layer_norm"] = "rms_norm"
    residual_in_fp32: bool = True

    def __post_init__(self, **kwargs):
        if self.time_step_rank == "auto":
            self.time_step_rank = math.ceil(self.hidden_size / 16)
        super().__post_init__(**kwargs)

    @property
    def num_layers(self) -> int:
        return self.num_hidden_layers

    def validate_sizes(self):
        """Part of the validation of strict configs: sizes are positive, and a class token has no angle."""
        self.require_positive("state_size", "conv_kernel", "expand", "time_step_rank")
        if self.expand * self.hidden_size < 8:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected an inner width of 8: gates keep an eighth")
        if self.rotary != "none" and self.class_token != "none":
            raise ValueError(f"rotary is {self.rotary!r}, expected 'none' with a class token, which has no position")

    def scan_of_layer(self, index: int) -> Scan:
        """The orders of the tokens that layer number `index` reads; rows that follow these are padded steps."""
        return over_tokens(get_scan(self.directions[index]), self.class_token != "none")
