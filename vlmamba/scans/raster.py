# SPDX-License-Identifier: Apache-2.0
"""Rows, columns, their reverses and turns: the scans of Vim, VMamba, VL-Mamba, MHS-VM and Mamba-ND."""

import numpy as np

from vlmamba.scans.base import Scan


def rows(height: int, width: int) -> np.ndarray:
    """Row by row: int64 `[L]`."""
    return np.arange(height * width)


def columns(height: int, width: int) -> np.ndarray:
    """Column by column: int64 `[L]`."""
    return rows(height, width).reshape(height, width).T.ravel()


def both_ways(*orders: np.ndarray) -> np.ndarray:
    """Every order, then every order reversed."""
    return np.stack([*orders, *(np.flip(order, 0) for order in orders)])


def there_and_back(*orders: np.ndarray) -> np.ndarray:
    """Every order followed by its reverse."""
    return np.stack([way for order in orders for way in (order, np.flip(order, 0))])


def mirrored(order: np.ndarray, width: int) -> np.ndarray:
    """The same order on the grid mirrored left to right."""
    return order - order % width + (width - 1 - order % width)


def upside_down(order: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same order on the grid mirrored top to bottom."""
    return (height - 1 - order // width) * width + order % width


def _turns(height: int, width: int) -> np.ndarray:
    """Row by row over the grid as it is, and turned by 90, 180 and 270 degrees."""
    grid = rows(height, width).reshape(height, width)
    return np.stack([np.rot90(grid, turns).ravel() for turns in range(4)])


RASTER = Scan("raster", 1, "row by row", lambda h, w: np.stack([rows(h, w)]))
COLUMN = Scan("column", 1, "column by column", lambda h, w: np.stack([columns(h, w)]))
RASTER_REVERSED = Scan("raster_reversed", 1, "row by row, back", lambda h, w: np.flip(rows(h, w), 0).reshape(1, h * w))
COLUMN_REVERSED = Scan(
    "column_reversed", 1, "column by column, back", lambda h, w: np.flip(columns(h, w), 0).reshape(1, h * w)
)
BIDIRECTIONAL = Scan(
    "bidirectional", 2, "row by row, and back (Vim; VL-Mamba's BSM)", lambda h, w: both_ways(rows(h, w))
)
CROSS_SCAN = Scan(
    "cross_scan",
    4,
    "row by row, column by column, and both back (VMamba's SS2D; VL-Mamba's CSM)",
    lambda h, w: both_ways(rows(h, w), columns(h, w)),
)
# VMamba's ablations of the cross-scan: four directions with their own parameters, of fewer or other orders
CROSS_SCAN_UNIDI = Scan(
    "cross_scan_unidi", 4, "row by row, four times (VMamba's v051d)", lambda h, w: np.stack([rows(h, w)] * 4)
)
CROSS_SCAN_BIDI = Scan(
    "cross_scan_bidi",
    4,
    "row by row twice, and back twice (VMamba's v052d)",
    lambda h, w: both_ways(rows(h, w), rows(h, w)),
)
CROSS_SCAN_ROT90 = Scan("cross_scan_rot90", 4, "row by row over the grid in its four turns (VMamba's v052d3)", _turns)
MHS_Z = Scan(
    "mhs_z",
    4,
    "row by row and back, column by column and back (MHS-VM's Z)",
    lambda h, w: there_and_back(rows(h, w), columns(h, w)),
)
MAMBA_ND = Scan(
    "mamba_nd_2d_layers0_3",
    4,
    "row by row and back, column by column and back, one after another in the layers (Mamba-ND)",
    lambda h, w: there_and_back(rows(h, w), columns(h, w)),
)

SCANS = (
    RASTER,
    COLUMN,
    RASTER_REVERSED,
    COLUMN_REVERSED,
    BIDIRECTIONAL,
    CROSS_SCAN,
    CROSS_SCAN_UNIDI,
    CROSS_SCAN_BIDI,
    CROSS_SCAN_ROT90,
    MHS_Z,
    MAMBA_ND,
)
