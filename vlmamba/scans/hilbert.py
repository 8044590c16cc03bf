# SPDX-License-Identifier: Apache-2.0
"""Hilbert curves of any size (the generalised curve of gilbert) and what is made of them (ZigMa, FractalMamba)."""

from collections.abc import Iterator

import numpy as np

from vlmamba.scans.base import Scan, constant
from vlmamba.scans.raster import mirrored, rows, there_and_back, upside_down


def hilbert(height: int, width: int, short_side: bool = False) -> np.ndarray:
    """A space-filling curve from the top left corner along the longer, or else the shorter side: `[L]`."""
    across, down = (width, 1), (height, width)
    sides = (across, down) if (width >= height) != short_side else (down, across)
    return np.concatenate([np.asarray(run) for run in _curve(0, *sides)])


def _curve(start: int, major: tuple[int, int], minor: tuple[int, int]) -> Iterator[range]:
    """Runs of rows that fill the rectangle of two sides, from `start` to the far end of `major`.

    A side is (signed length, row distance of neighbours along it).
    """
    (a, along), (b, beside) = major, minor
    sign_a, sign_b = (1 if a > 0 else -1), (1 if b > 0 else -1)
    if abs(b) == 1:
        yield range(start, start + a * along, sign_a * along)
        return
    if abs(a) == 1:
        yield range(start, start + b * beside, sign_b * beside)
        return
    half_a, half_b = a // 2, b // 2
    if 2 * abs(a) > 3 * abs(b):  # long: two parts side by side
        if half_a % 2 and abs(a) > 2:
            half_a += sign_a
        yield from _curve(start, (half_a, along), minor)
        yield from _curve(start + half_a * along, (a - half_a, along), minor)
        return
    if half_b % 2 and abs(b) > 2:
        half_b += sign_b
    yield from _curve(start, (half_b, beside), (half_a, along))
    yield from _curve(start + half_b * beside, major, (b - half_b, beside))
    last = start + (a - sign_a) * along + (half_b - sign_b) * beside
    yield from _curve(last, (-half_b, beside), (half_a - a, along))


def _cropped(height: int, width: int) -> np.ndarray:
    """The classic curve of the next power of two, by each position's number on it."""
    y, x = np.divmod(rows(height, width), width)
    step = np.zeros_like(x)
    side = 1 << (max(height, width) - 1).bit_length()
    half = side // 2
    while half:
        right, down = (x & half) > 0, (y & half) > 0
        step += half * half * ((3 * right) ^ down)
        # the quarters are turned: the first along the other diagonal, the last along this one
        x, y = np.where(right & ~down, side - 1 - x, x), np.where(right & ~down, side - 1 - y, y)
        x, y = np.where(down, x, y), np.where(down, y, x)
        half //= 2
    return np.argsort(step)


def _shifted(height: int, width: int) -> np.ndarray:
    """The curve moved by a quarter of the grid, around its edges."""
    r, c = np.divmod(hilbert(height, width), width)
    return (r + max(1, height // 4)) % height * width + (c + max(1, width // 4)) % width


def _images(height: int, width: int) -> np.ndarray:
    """The curve turned by 0, 90, 180 and 270 degrees, each as it is and transposed.

    On other grids than squares, the curve along the shorter side stands for the transposed one.
    """
    curve, transposed = hilbert(height, width), hilbert(height, width, short_side=True)
    last = height * width - 1
    return np.stack(
        [
            curve,
            transposed,
            upside_down(transposed, height, width),
            mirrored(curve, width),
            last - curve,
            last - transposed,
            mirrored(transposed, width),
            upside_down(curve, height, width),
        ]
    )


SCANS = (
    Scan("hilbert", 1, "Hilbert curve of any size (gilbert)", constant(lambda h, w: hilbert(h, w)[None])),
    Scan(
        "hilbert_crop",
        1,
        "Hilbert curve of the next power of two, cropped; it may jump (own definition)",
        constant(lambda h, w: _cropped(h, w)[None]),
    ),
    Scan(
        "hilbert_shift",
        1,
        "Hilbert curve moved by a quarter of the grid (own stand-in for FractalMamba's shift)",
        constant(lambda h, w: _shifted(h, w)[None]),
    ),
    Scan(
        "hilbert_dihedral8",
        8,
        "Hilbert curve in its eight turned and mirrored images, one after another in the layers (ZigMa)",
        constant(_images),
    ),
    Scan(
        "fractal4",
        4,
        "Hilbert curve and back, moved by a quarter of the grid and back (own reading of FractalMamba)",
        constant(lambda h, w: there_and_back(hilbert(h, w), _shifted(h, w))),
    ),
)
