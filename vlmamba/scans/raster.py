# SPDX-License-Identifier: Apache-2.0
"""Rows, columns and their reverses: the scans of Vim, VMamba and VL-Mamba."""

import torch

from vlmamba.scans.base import Scan


def _rows(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width)


def _columns(height: int, width: int) -> torch.Tensor:
    return _rows(height, width).view(height, width).t().flatten()


def _turns(height: int, width: int) -> torch.Tensor:
    """Row by row over the grid as it is, and turned by 90, 180 and 270 degrees."""
    grid = _rows(height, width).view(height, width)
    return torch.stack([grid.rot90(turns).flatten() for turns in range(4)])


def _both_ways(*orders: torch.Tensor) -> torch.Tensor:
    """Every order, then every order reversed."""
    return torch.stack([*orders, *(order.flip(0) for order in orders)])


RASTER = Scan("raster", 1, "row by row", lambda h, w: _rows(h, w)[None])
BIDIRECTIONAL = Scan(
    "bidirectional", 2, "row by row, and back (Vim; VL-Mamba's BSM)", lambda h, w: _both_ways(_rows(h, w))
)
CROSS_SCAN = Scan(
    "cross_scan",
    4,
    "row by row, column by column, and both back (VMamba's SS2D; VL-Mamba's CSM)",
    lambda h, w: _both_ways(_rows(h, w), _columns(h, w)),
)
# VMamba's ablations of the cross-scan: four directions with their own parameters, of fewer or other orders
CROSS_SCAN_UNIDI = Scan(
    "cross_scan_unidi", 4, "row by row, four times (VMamba's v051d)", lambda h, w: _rows(h, w).expand(4, -1)
)
CROSS_SCAN_BIDI = Scan(
    "cross_scan_bidi",
    4,
    "row by row twice, and back twice (VMamba's v052d)",
    lambda h, w: _both_ways(_rows(h, w), _rows(h, w)),
)
CROSS_SCAN_ROT90 = Scan("cross_scan_rot90", 4, "row by row over the grid in its four turns (VMamba's v052d3)", _turns)
