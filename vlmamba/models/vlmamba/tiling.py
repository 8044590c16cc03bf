# SPDX-License-Identifier: Apache-2.0
"""How an image of any size is cut into tiles of the encoder's size: which grid, in which order."""

from fractions import Fraction
from math import ceil

import torch

Size = tuple[int, int]
# of an image's own height and width: no further tiles for the last tenth
ENOUGH = Fraction(9, 10)


def tile_grid(image: Size, tile: Size, limit: int) -> Size:
    """Rows and columns of tiles for an image whose aspect ratio is kept.

    Of all grids with at most `limit` tiles it is the one that shrinks the image least, where nine tenths of its own
    height and width are enough; of several such the one with the fewest tiles. So no tile is all padding, and an image
    that is not much larger than a tile is a grid of one.

    Args:
        image: height and width in pixels, 1 or more.
        tile: height and width of a tile in pixels.
        limit: 1 or more tiles.
    """
    (height, width), (down, right) = image, tile
    best, grid = Fraction(0), (1, 1)
    for rows in range(1, min(limit, ceil(ENOUGH * height / down)) + 1):
        scale = min(ENOUGH, Fraction(rows * down, height), Fraction(limit // rows * right, width))
        found = (rows, ceil(scale * width / right))
        if scale > best or (scale == best and found[0] * found[1] < grid[0] * grid[1]):
            best, grid = scale, found
    return grid


def fitted_size(image: Size, box: Size) -> Size:
    """The largest height and width with the image's aspect ratio in a box, at least one pixel each."""
    scale = min(box[0] / image[0], box[1] / image[1])
    # a 10000 x 20 image keeps at least one row
    return max(1, round(image[0] * scale)), max(1, round(image[1] * scale))


def cut(canvas: torch.Tensor, grid: Size) -> list[torch.Tensor]:
    """The tiles `[channels, h, w]` of a `[channels, rows * h, columns * w]`, row by row."""
    rows, columns = grid
    tiles = canvas.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))  # [channels, rows, h, columns, w]
    return list(tiles.permute(1, 3, 0, 2, 4).flatten(0, 1))
