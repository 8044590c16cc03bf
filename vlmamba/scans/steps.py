# SPDX-License-Identifier: Apache-2.0
"""The steps of a scan as tables over the rows: when an order comes to a row, and from which side."""

from collections.abc import Callable
from math import prod

import numpy as np

from vlmamba.scans.base import Scan, constant, orders
from vlmamba.scans.snakes import moves

_made: dict[tuple[str, Scan], Scan] = {}


def steps_of(scan: Scan) -> Scan:
    """Labels `[K, L]`: at which step, padded ones not counted, each order visits a row."""
    return _by_row("steps", scan, "at which step a row is visited", lambda order, width: np.arange(len(order)))


def moves_of(scan: Scan) -> Scan:
    """Labels `[K, L]`: by which move each order comes to a row.

    0 is the start, 1 right, 2 left, 3 up, 4 down, as in PlainMamba (arXiv:2403.17695). A jump counts as the move to its
    side, if it goes to any.
    """
    return _by_row("moves", scan, "by which move a row is reached", lambda order, width: moves(order[None], width)[0])


def _by_row(name: str, scan: Scan, words: str, values: Callable[[np.ndarray, int], np.ndarray]) -> Scan:
    key = (name, scan)
    if key not in _made:
        if scan.kind != "grid":
            raise ValueError(f"{name}_of: scan {scan.name!r} is of kind {scan.kind!r}, expected 'grid'")

        def build(*grid: int) -> np.ndarray:
            table = np.zeros((scan.num_paths, prod(grid)), dtype=np.int64)
            for labels, order in zip(table, orders(scan, *grid), strict=True):
                order = order[order >= 0]
                labels[order] = values(order, grid[-1])
            return table

        words = f"{words}: {scan.description}"
        _made[key] = Scan(f"{name}({scan.name})", scan.num_paths, words, constant(build), kind="labels")
    return _made[key]
