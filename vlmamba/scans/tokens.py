# SPDX-License-Identifier: Apache-2.0
"""Extra tokens among the patches (Vim, Mamba-R), two modalities (Sigma) and two scales (MSVMamba) in one sequence."""

from functools import cache

import numpy as np

from vlmamba.scans.base import Scan, constant, padded
from vlmamba.scans.raster import both_ways, columns, rows


@cache
def registers(count: int) -> Scan:
    """Row by row with registers spread evenly among the patches (Mamba-R, arXiv:2405.14858).

    After every L // (count + 1) of the L patches comes one register; the rest of the patches follows. Register i is
    row L + i.

    Raises:
        ValueError: count is below 1.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"registers: count is {count!r}, expected a whole number, 1 or more")

    def order(height: int, width: int) -> np.ndarray:
        patches = rows(height, width)
        step = len(patches) // (count + 1)
        places = step * np.arange(1, count + 1)
        return np.insert(patches, places, len(patches) + np.arange(count))[None]

    words = f"row by row, {count} registers spread among the patches (Mamba-R)"
    return Scan(f"registers_{count}", 1, words, constant(order), kind="tokens", extra_tokens=count)


def _middle_class_token(height: int, width: int) -> np.ndarray:
    patches = rows(height, width)
    return np.insert(patches, len(patches) // 2, len(patches))[None]


def _alternating(height: int, width: int) -> np.ndarray:
    first = rows(height, width)
    return np.stack([first, first + len(first)], axis=1).ravel()


def _two_scales(height: int, width: int) -> np.ndarray:
    """Rows of the whole grid; then, as one sequence, three orders of the grid of every second row and column."""
    low = (-(-height // 2), -(-width // 2))
    read = np.concatenate([rows(*low)[::-1], columns(*low), columns(*low)[::-1]])
    return padded([rows(height, width), read])


SCANS = (
    Scan(
        "vim_middle_cls",
        1,
        "row by row, the class token in the middle (Vim)",
        constant(_middle_class_token),
        kind="tokens",
        extra_tokens=1,
    ),
    registers(3),
    Scan(
        "sigma_concat_2modalities",
        2,
        "one modality row by row, then the other, and back (Sigma's ConMB)",
        constant(lambda h, w: both_ways(rows(2 * h, w))),
        kind="modalities",
        grids=2,
    ),
    Scan(
        "interleave_2modalities",
        2,
        "both modalities in turn at every position, and back (own variant of Sigma's ConMB)",
        constant(lambda h, w: both_ways(_alternating(h, w))),
        kind="modalities",
        grids=2,
    ),
    Scan(
        "msvmamba_low2",
        2,
        "row by row; on the grid of half the size back, column by column and back, as one sequence (MSVMamba)",
        constant(_two_scales),
        kind="scales",
    ),
)
