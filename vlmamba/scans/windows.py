# SPDX-License-Identifier: Apache-2.0
"""Windows read one after another (LocalMamba) and sub-grids of every p-th row and column (EfficientVMamba)."""

from functools import cache
from itertools import product

import numpy as np

from vlmamba.scans.base import Scan, constant, padded


def local_windows(side: int, *, flip: bool = False, column_first: bool = False, pad: bool = True) -> Scan:
    """Square windows one after another, row by row inside (LocalMamba, arXiv:2403.09338).

    Args:
        side: of a window; the grid is padded below and to the right to a multiple of it.
        flip: read the whole sequence, padding included, backwards.
        column_first: windows and their positions column by column instead of row by row.
        pad: keep the padded steps, which let the state decay; official weights are trained so.

    Raises:
        ValueError: side is below 1.
    """
    _check_side("local_windows: side", side)
    return _local_windows(side, flip, column_first, pad)


@cache
def _local_windows(side: int, flip: bool, column_first: bool, pad: bool) -> Scan:
    def order(height: int, width: int) -> np.ndarray:
        grid = _padded_grid(height, width, side)
        windows = grid.reshape(grid.shape[0] // side, side, grid.shape[1] // side, side)
        read = windows.transpose(2, 0, 3, 1) if column_first else windows.transpose(0, 2, 1, 3)
        order = read.ravel() if pad else read[read >= 0]
        return order[None, ::-1] if flip else order[None]

    line = "column by column" if column_first else "row by row"
    words = f"{side} x {side} windows {line}, inside them too"
    words += ", backwards" * flip + ", without padding" * (not pad) + " (LocalMamba)"
    name = f"local_w{side}" + "_column_first" * column_first + "_flip" * flip + "_nopad" * (not pad)
    return Scan(name, 1, words, constant(order))


@cache
def atrous(step: int) -> Scan:
    """One order for each of the step * step sub-grids of every `step`-th row and column, all row by row.

    Raises:
        ValueError: step is below 1.
    """
    _check_side("atrous: step", step)

    def build(height: int, width: int) -> np.ndarray:
        grid = np.arange(height * width).reshape(height, width)
        return padded([grid[r::step, c::step].ravel() for r, c in product(range(step), repeat=2)])

    words = f"{step * step} sub-grids of positions {step} apart, each row by row (the general atrous scan)"
    return Scan(f"atrous_step{step}", step * step, words, constant(build), kind="parts")


def _padded_grid(height: int, width: int, multiple: int) -> np.ndarray:
    """Row numbers, with -1 below and to the right up to the next multiple."""
    grid = np.arange(height * width).reshape(height, width)
    return np.pad(grid, ((0, -height % multiple), (0, -width % multiple)), constant_values=-1)


def _check_side(what: str, side: int) -> None:
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"{what} is {side!r}, expected a whole number, 1 or more")


def _es2d(height: int, width: int) -> np.ndarray:
    """Even rows row by row, odd rows column by column, for even and then odd columns."""
    grid = _padded_grid(height, width, 2)
    return np.stack([part.ravel() for c in (0, 1) for part in (grid[::2, c::2], grid[1::2, c::2].T)])


def _es2d_without_padding(height: int, width: int) -> np.ndarray:
    return padded([order[order >= 0] for order in _es2d(height, width)])


ES2D = "4 sub-grids of positions 2 apart, the two of odd rows column by column"
SCANS = (
    *(
        local_windows(side, flip=flip, column_first=column_first, pad=pad)
        for side in (2, 3, 7)
        for flip, column_first, pad in product((False, True), (False, True), (True, False))
    ),
    Scan("es2d_step2", 4, f"{ES2D} (EfficientVMamba's ES2D)", constant(_es2d), kind="parts"),
    Scan(
        "es2d_step2_nopad",
        4,
        f"{ES2D}, without padding (after EfficientVMamba's ES2D)",
        constant(_es2d_without_padding),
        kind="parts",
    ),
    atrous(2),
)
