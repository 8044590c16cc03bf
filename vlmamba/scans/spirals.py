# SPDX-License-Identifier: Apache-2.0
"""From the border inwards or from the centre outwards: spirals (MHS-VM) and radial orders."""

import numpy as np

from vlmamba.scans.base import Scan, constant
from vlmamba.scans.raster import rows, there_and_back, upside_down


def spiral(height: int, width: int) -> np.ndarray:
    """Rings clockwise from the top left corner inwards: `[L]`."""
    grid, sides = rows(height, width).reshape(height, width), []
    while grid.size:
        sides.append(grid[0])
        grid = np.rot90(grid[1:])  # so that the next side comes first
    return np.concatenate(sides)


def _spirals(height: int, width: int) -> np.ndarray:
    """Inwards and back, and the same on the grid mirrored top to bottom."""
    order = spiral(height, width)
    return there_and_back(order, upside_down(order, height, width))


def _walk(height: int, width: int) -> np.ndarray:
    """From the centre one right, one down, two left, two up, three right, ...; what lies outside is left out."""
    r, c = np.divmod(rows(height, width), width)
    y, x = r - (height - 1) // 2, c - (width - 1) // 2
    k = np.maximum(abs(x), abs(y))  # the ring
    # steps walked at the ring's corners: below right after its way down, above left after its way up
    below_right, above_left = (2 * k - 1) * 2 * k, 2 * k * (2 * k + 1)
    step = np.select(
        [y == k, x == -k, y == -k],
        [below_right + k - x, above_left - k - y, above_left + k + x],
        below_right - k + y,
    )
    return np.argsort(step)


def _offsets(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Twice the way from the centre to the right and down, which is whole for every size."""
    r, c = np.divmod(rows(height, width), width)
    return 2 * c - (width - 1), 2 * r - (height - 1)


def _rays(height: int, width: int) -> np.ndarray:
    """Eight sectors of 45 degrees clockwise, the first around East, each outwards; a true centre comes first."""
    dx, dy = _offsets(height, width)
    reach = (abs(dx) + abs(dy)) ** 2  # no tie: the sectors' borders are irrational
    level, steep = reach < 2 * dx**2, reach < 2 * dy**2
    right, down = dx > 0, dy > 0
    sector = np.select(
        [(dx == 0) & (dy == 0), level & right, steep & down, level, steep, right & down, down, ~right],
        [-1, 0, 2, 4, 6, 1, 3, 5],
        7,
    )
    return np.lexsort((dx**2 + dy**2, sector))


def _rings(height: int, width: int) -> np.ndarray:
    """By distance from the centre, each ring clockwise from East."""
    dx, dy = _offsets(height, width)
    above = dy < 0
    # on a circle the angle grows as x falls below the centre and as x rises above it
    return np.lexsort((np.where(above, dx, -dx), above, dx**2 + dy**2))


SCANS = (
    Scan(
        "spiral_in",
        1,
        "rings clockwise from the top left corner inwards (MHS-VM's S, first route)",
        constant(lambda h, w: spiral(h, w)[None]),
    ),
    Scan(
        "spiral_out",
        1,
        "rings from the inside outwards (the survey's spiral scan; MHS-VM's S, second route)",
        constant(lambda h, w: spiral(h, w)[None, ::-1]),
    ),
    Scan(
        "spiral_walk",
        1,
        "a walk around the centre in growing turns; it jumps where it would leave the grid (own definition)",
        constant(lambda h, w: _walk(h, w)[None]),
    ),
    Scan(
        "mhs_s_spiral4",
        4,
        "rings inwards and back, the same mirrored top to bottom (MHS-VM's S)",
        constant(_spirals),
    ),
    Scan(
        "radial_rays",
        1,
        "eight sectors clockwise from East, each outwards (the survey's radial scan; own definition)",
        constant(lambda h, w: _rays(h, w)[None]),
    ),
    Scan(
        "radial_rings",
        1,
        "by distance from the centre, each ring clockwise from East (own definition)",
        constant(lambda h, w: _rings(h, w)[None]),
    ),
)
