# SPDX-License-Identifier: Apache-2.0
"""Snakes: every second line is read backwards, so that each step goes to a neighbour (ZigMa, PlainMamba, MHS-VM)."""

import numpy as np

from vlmamba.scans.base import Scan, constant
from vlmamba.scans.raster import there_and_back

# how a step reached its position; PlainMamba adds a learned vector to B for each
START, RIGHT, LEFT, UP, DOWN = range(5)


def snake(grid: np.ndarray) -> np.ndarray:
    """The numbers of a `[height, width]` grid row by row, every second row backwards: `[L]`."""
    turned = grid.copy()
    turned[1::2] = turned[1::2, ::-1]
    return turned.ravel()


def _grid(height: int, width: int) -> np.ndarray:
    return np.arange(height * width).reshape(height, width)


def _row_and_column_snakes(height: int, width: int) -> np.ndarray:
    grid = _grid(height, width)
    return there_and_back(snake(grid), snake(grid.T))


def _from_every_corner(height: int, width: int) -> np.ndarray:
    grid = _grid(height, width)
    corners = (grid, grid[:, ::-1], grid[::-1], grid[::-1, ::-1])
    return np.stack([snake(turned) for corner in corners for turned in (corner, corner.T)])


def moves(orders: np.ndarray, width: int) -> np.ndarray:
    """How each step of orders `[K, L]` of a grid of this width came to where it is; sideways, if it did that at all."""
    down = np.diff(orders // width, axis=1)
    right = np.diff(orders % width, axis=1)
    labels = np.select([right > 0, right < 0, down < 0], [RIGHT, LEFT, UP], DOWN)
    return np.pad(labels, ((0, 0), (1, 0)), constant_values=START)


def _directions(height: int, width: int) -> np.ndarray:
    return moves(_row_and_column_snakes(height, width), width)


SCANS = (
    Scan(
        "row_snake",
        1,
        "row by row, every second row backwards (the survey's zigzag; ZigMa's first)",
        constant(lambda h, w: snake(_grid(h, w))[None]),
    ),
    Scan(
        "column_snake",
        1,
        "column by column, every second column backwards (ZigMa's second)",
        constant(lambda h, w: snake(_grid(h, w).T)[None]),
    ),
    Scan(
        "zigma8",
        8,
        "row snake and column snake from each corner, one after another in the layers (ZigMa)",
        constant(_from_every_corner),
    ),
    Scan(
        "plainmamba4",
        4,
        "row snake and back, column snake and back (PlainMamba's continuous 2D scan)",
        constant(_row_and_column_snakes),
    ),
    Scan(
        "plainmamba4_directions",
        4,
        "how each step of plainmamba4 is reached: 0 start, 1 right, 2 left, 3 up, 4 down (PlainMamba)",
        constant(_directions),
        kind="labels",
    ),
    Scan("mhs_c", 4, "row snake and back, column snake and back (MHS-VM's C)", constant(_row_and_column_snakes)),
)
