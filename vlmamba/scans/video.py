# SPDX-License-Identifier: Apache-2.0
"""Videos: frames x height x width, row (t * height + r) * width + c (Vivim, Mamba-ND)."""

import numpy as np

from vlmamba.scans.base import Scan, constant
from vlmamba.scans.raster import both_ways, there_and_back

T, H, W = range(3)


def nested(grid: tuple[int, int, int], *axes: int) -> np.ndarray:
    """Every position of a frames x height x width grid, the first of `axes` outermost: `[L]`."""
    return np.arange(np.prod(grid)).reshape(grid).transpose(axes).ravel()


def _three(*grid: int) -> np.ndarray:
    frames_first = nested(grid, T, H, W)
    return np.stack([frames_first, np.flip(frames_first), nested(grid, H, W, T)])


SCANS = (
    Scan(
        "bidirectional_3d",
        2,
        "frame by frame, and back",
        constant(lambda *grid: both_ways(nested(grid, T, H, W))),
        kind="video",
    ),
    Scan(
        "vivim3",
        3,
        "frame by frame, and back; every position through all frames (Vivim)",
        constant(_three),
        kind="video",
    ),
    Scan(
        "spatiotemporal4",
        4,
        "frame by frame and back, every position through all frames and back (after Vivim)",
        constant(lambda *grid: there_and_back(nested(grid, T, H, W), nested(grid, H, W, T))),
        kind="video",
    ),
    Scan(
        "mamba_nd_3d_layers0_5",
        6,
        "three nestings of time, rows and columns and each back, one after another in the layers (Mamba-ND)",
        constant(lambda *grid: there_and_back(nested(grid, T, H, W), nested(grid, T, W, H), nested(grid, W, H, T))),
        kind="video",
    ),
)
