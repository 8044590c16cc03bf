# SPDX-License-Identifier: Apache-2.0
"""Rows, columns and their reverses: the scans of Vim, VMamba and VL-Mamba."""

import torch

from vlmamba.scans.base import Scan


def _rows(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width)


def _columns(height: int, width: int) -> torch.Tensor:
    return _rows(height, width).view(height, width).t().flatten()


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
