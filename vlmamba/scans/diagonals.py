# SPDX-License-Identifier: Apache-2.0
"""Diagonals, true and cyclic, and the sets of eight directions made with them (MHS-VM, RS-Mamba)."""

import numpy as np

from vlmamba.scans.base import Scan, constant
from vlmamba.scans.raster import both_ways, columns, mirrored, rows, there_and_back


def diagonals(height: int, width: int, snake: bool = False) -> np.ndarray:
    """Anti-diagonals r + c = 0, 1, ..., each downwards; as a snake, every second one upwards: `[L]`."""
    r, c = np.divmod(rows(height, width), width)
    upwards = snake & ((r + c) % 2 == 0)
    return np.lexsort((np.where(upwards, -r, r), r + c))


def _cyclic(height: int, width: int, slope: int) -> np.ndarray:
    """From every column of the first row down a diagonal that goes on at the other edge."""
    start, r = np.divmod(rows(width, height), height)
    return r * width + (start + slope * r) % width


def _four(height: int, width: int, snake: bool) -> np.ndarray:
    order = diagonals(height, width, snake)
    return there_and_back(order, mirrored(order, width))


def _eight_cyclic(height: int, width: int) -> np.ndarray:
    straight = both_ways(rows(height, width), columns(height, width))
    return np.concatenate([straight, both_ways(_cyclic(height, width, 1), _cyclic(height, width, -1))])


def _eight(height: int, width: int) -> np.ndarray:
    straight = both_ways(rows(height, width), columns(height, width))
    order = diagonals(height, width)
    return np.concatenate([straight, both_ways(mirrored(order, width), order)])


SCANS = (
    Scan(
        "diag_same",
        1,
        "anti-diagonals, each downwards (the survey's diagonal scan)",
        constant(lambda h, w: diagonals(h, w)[None]),
    ),
    Scan(
        "diag_snake",
        1,
        "anti-diagonals, down and up in turn, as in JPEG (the survey's diagonal scan)",
        constant(lambda h, w: diagonals(h, w, snake=True)[None]),
    ),
    Scan(
        "diag_same4",
        4,
        "diagonals each downwards and back, the same mirrored left to right",
        constant(lambda h, w: _four(h, w, snake=False)),
    ),
    Scan(
        "mhs_x_diag_snake4",
        4,
        "diagonals down and up in turn and back, the same mirrored left to right (MHS-VM's X)",
        constant(lambda h, w: _four(h, w, snake=True)),
    ),
    Scan(
        "diag_wrap",
        1,
        "down to the right from every column, around the edge (RS-Mamba)",
        constant(lambda h, w: _cyclic(h, w, 1)[None]),
    ),
    Scan(
        "antidiag_wrap",
        1,
        "down to the left from every column, around the edge (RS-Mamba)",
        constant(lambda h, w: _cyclic(h, w, -1)[None]),
    ),
    Scan(
        "omni8_rsmamba",
        8,
        "rows, columns and both back, both cyclic diagonals and both back (RS-Mamba's omnidirectional scan)",
        constant(_eight_cyclic),
    ),
    Scan(
        "omni8_nowrap",
        8,
        "rows, columns and both back, both true diagonals and both back (after RS-Mamba)",
        constant(_eight),
    ),
)
