# SPDX-License-Identifier: Apache-2.0
"""What the converters of the forks of VMamba's first release (v0) share: names, and the shapes of directions."""

import re
from collections.abc import Sequence

import torch

from vlmamba.models.official_names import Target, matched

BLOCK = r"^layers\.(\d+)\.blocks\.(\d+)\."


def downsampling(pattern: str, target: str) -> tuple[str, Target]:
    """A key of the step after stage i, which is ours before stage i + 1; `target` has a {} for its number."""
    return pattern, lambda match: target.format(int(match[1]) + 1)


# official key -> ours, of what keeps its shape; the names of a backbone have no "base." before them
KEYS: list[tuple[str, Target]] = [
    (r"^patch_embed\.0\.", "base.encoder.embeddings.convolutions.0.conv."),
    (r"^patch_embed\.2\.", "base.encoder.embeddings.convolutions.0.norm."),
    (BLOCK + r"norm\.", r"base.encoder.stages.\1.blocks.\2.norm."),
    (BLOCK + r"op\.(in_proj|conv2d|out_norm|out_proj)\.", r"base.encoder.stages.\1.blocks.\2.mixer.\3."),
    (
        BLOCK + r"op\.(x_proj_weight|dt_projs_weight|dt_projs_bias|A_logs|Ds)$",
        r"base.encoder.stages.\1.blocks.\2.mixer.scans.\3",
    ),
    downsampling(r"^layers\.(\d+)\.downsample\.(?=norm|reduction)", "base.encoder.stages.{}.downsample."),
    (r"^outnorm(\d+)\.", lambda match: f"hidden_states_norms.stage{int(match[1]) + 1}."),
    (r"^classifier\.norm\.", "base.norm."),
    (r"^classifier\.head\.", "classifier."),
]
_OF_ALL_DIRECTIONS = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")


def rename_maps(
    state_dict: dict[str, torch.Tensor], patterns: Sequence[tuple[str, Target]], base: str
) -> dict[str, torch.Tensor]:
    """Official names and shapes to ours; names that match nothing are kept, so that loading reports them.

    Args:
        state_dict: official weights.
        patterns: as `KEYS`.
        base: what the encoder is called in the model, with a dot; empty in a backbone, which is the encoder.
    """
    renamed = {}
    for key, tensor in state_dict.items():
        new = matched(re.sub(r"^(module\.)+", "", key), patterns)
        new = base + new.removeprefix("base.") if new.startswith("base.") else new
        prefix, _, name = key.rpartition(".")
        if new != key and name in _OF_ALL_DIRECTIONS:
            inputs = state_dict.get(f"{prefix}.x_proj_weight")
            renamed |= _directions(new, tensor, 1 if inputs is None else len(inputs))
        else:
            renamed[new] = tensor
    return renamed


def _directions(key: str, tensor: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Parameters that hold all directions, in our shapes: a linear layer for the time steps of each."""
    prefix, _, name = key.rpartition(".")
    if name == "x_proj_weight":
        return {f"{prefix}.x_proj.weight": tensor.flatten(0, 1)}
    if name in ("A_logs", "Ds"):
        parts = tensor.unflatten(0, (count, -1)) if len(tensor) % count == 0 else tensor
        return {f"{prefix}.{'A_log' if name == 'A_logs' else 'D'}": parts}
    return {f"{prefix}.dt_projs.{k}.{name.rpartition('_')[2]}": part for k, part in enumerate(tensor)}
