# SPDX-License-Identifier: Apache-2.0
"""Encoders whose tokens turn by the angles of their places before every layer, as Vim's and LocalVim's can."""

from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict

from vlmamba.layers.embeddings import Grid
from vlmamba.layers.rope import rotary_table, rotated
from vlmamba.models.vision_config import TokenEncoderConfig

_OFFICIAL = ("rope.freqs_cos", "rope.freqs_sin")
# above the rounding of tables that were saved in half precision
_ANGLES_DIFFER = 5e-3


@strict
class RotaryConfig(TokenEncoderConfig):
    r"""The part of a config that says what turns.

    Args:
        class_token: where the class token stands, "none" if there is none. With one the first token of the sequence
            keeps still, wherever the class token stands: the patches turn by their own places when it is "first".
        rotary: rotary position embeddings: before every layer of the whole residual "stream", of the last layer's
            "updates" to it alone, or "none".
        rotary_length: what both sides of the grid of `image_size` count as in their angles.
    """

    class_token: str = "none"
    rotary: Literal["stream", "updates", "none"] = "none"
    rotary_length: int = 14

    def validate_rotary(self):
        """Part of the validation of strict configs: angles have channels, and one token at most has none."""
        self.require_positive("rotary_length")
        if self.rotary != "none" and self.hidden_size % 4:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected a multiple of 4 with rotary {self.rotary!r}")
        if self.rotary != "none" and self.class_token == "both":
            raise ValueError(f"rotary is {self.rotary!r}, expected 'none' with two class tokens")


class RotaryTokens:
    """Mixed into encoders of tokens: what turns before and after a layer."""

    def before_layer(self, index: int, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The residual stream `[B, L, D]` as layer number `index` reads it."""
        rotary = self.config.rotary
        return self._turn(tokens, grid) if rotary == "stream" or (rotary == "updates" and index == 0) else tokens

    def after_layer(self, index: int, tokens: torch.Tensor, mixed: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The stream after layer number `index`, which made `mixed` of `tokens`."""
        if self.config.rotary != "updates" or index + 1 == len(self.layers):
            return mixed
        # the next layer reads the update turned; the norm at the end does not
        return tokens + self._turn(mixed - tokens, grid)

    def _turn(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        config = self.config
        table = rotary_table(grid, config.grid_size, config.hidden_size, config.rotary_length, device=tokens.device)
        still = tokens.shape[1] - table.shape[1]
        if not still:
            return rotated(tokens, table)
        return torch.cat([tokens[:, :still], rotated(tokens[:, still:], table)], dim=1)


def rotary_from_official(arguments: dict[str, Any]) -> dict[str, Any]:
    """The config's fields of official arguments."""
    rotary = "none"
    if arguments.get("if_rope", False):
        rotary = "stream" if arguments.get("if_rope_residual", False) else "updates"
    return {"rotary": rotary, "rotary_length": arguments.get("pt_hw_seq_len", 14)}


def without_rotary_tables(renamed: dict[str, torch.Tensor], config: RotaryConfig) -> dict[str, torch.Tensor]:
    """Official weights without the tables that are what we compute ourselves; others stay, under their name."""
    if config.rotary == "none":
        return renamed
    tables = rotary_table(config.grid_size, config.grid_size, config.hidden_size, config.rotary_length)
    ours = dict(zip(_OFFICIAL, tables, strict=True))
    return {key: tensor for key, tensor in renamed.items() if key not in ours or not _is_same(tensor, ours[key])}


def _is_same(official: torch.Tensor, ours: torch.Tensor) -> bool:
    if official.shape != ours.shape:
        return False
    return official.is_meta or (official.float() - ours).abs().max().item() < _ANGLES_DIFFER
