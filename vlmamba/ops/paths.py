# SPDX-License-Identifier: Apache-2.0
"""What the ops must know of a path table, read from it once: tables are made once and used in every call."""

from dataclasses import dataclass

import torch
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class PathFacts:
    """`low` and `high`: the smallest and largest entry. `unique`: no direction visits a row twice.

    `complete`: every direction visits every row of a sequence exactly once, without padded steps.
    """

    version: int
    length: int
    low: int
    high: int
    unique: bool
    complete: bool


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def path_facts(paths: torch.Tensor, length: int) -> PathFacts:
    """The facts of an integer table `[K, T]` over `length` rows; looks into the tensor only if it is new or changed."""
    # tensors made under inference mode do not count their changes
    version = -1 if paths.is_inference() else paths._version
    facts = _known.get(paths)
    if facts is None or facts.length != length or facts.version != version or version < 0:
        facts = _read(paths, length, version)
        _known[paths] = facts
    return facts


def _read(paths: torch.Tensor, length: int, version: int) -> PathFacts:
    if not paths.numel():
        return PathFacts(version, length, 0, 0, True, length == 0)
    low, high = (int(v) for v in paths.aminmax())
    ordered = paths.sort(dim=-1).values
    unique = not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any())
    complete = unique and low == 0 and high == length - 1 and paths.shape[1] == length
    return PathFacts(version, length, low, high, unique, complete)


def check_paths(op: str, paths: torch.Tensor, num_paths: int, length: int) -> None:
    """Raise unless `paths` is `(num_paths, T)` and every entry is a row below `length`, or -1 for a padded step."""
    if paths.dim() != 2 or paths.shape[0] != num_paths:
        raise ValueError(f"{op}: paths has shape {tuple(paths.shape)}, expected ({num_paths}, T)")
    if _is_unreadable(paths):
        return  # a graph cannot depend on the rows' values; the kernels look again when it runs
    facts = path_facts(paths, length)
    if paths.numel() and (facts.low < -1 or facts.high >= length):
        raise ValueError(f"{op}: paths has rows from {facts.low} to {facts.high}, expected -1 to {length - 1}")


def has_padded_steps(paths: torch.Tensor, length: int) -> bool:
    """Whether a table that `check_paths` let pass holds a -1; False where a graph is drawn."""
    return not _is_unreadable(paths) and path_facts(paths, length).low < 0


def _is_unreadable(paths: torch.Tensor) -> bool:
    """Whether the table has no values here: it is traced, fake or on the meta device."""
    return torch.compiler.is_compiling() or type(paths) is not torch.Tensor or paths.is_meta
