# SPDX-License-Identifier: Apache-2.0
"""Draw the picture of docs/high_resolution.md again: python docs/high_resolution/draw.py"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from vlmamba import VLMambaImageProcessor
from vlmamba.data import load_image
from vlmamba.models.vlmamba.tiling import tile_grid

FOLDER = Path(__file__).parent
EXAMPLES = FOLDER.parents[1] / "examples"
TILE = 128
LIMIT = 12


def picture() -> Image.Image:
    """Three drawings side by side, 600 x 230."""
    wide = Image.new("RGB", (600, 230), "white")
    for place, name in enumerate(("castle", "truck", "whale")):
        wide.paste(load_image(EXAMPLES / f"{name}.png").resize((200, 200)), (200 * place, 15))
    return wide


def views() -> tuple[tuple[int, int], torch.Tensor]:
    """The grid, and what the encoder sees, `[views, TILE, TILE, 3]` in 0..1."""
    images = VLMambaImageProcessor(size={"height": TILE, "width": TILE})
    pixels = images(picture(), max_patches=LIMIT, do_normalize=False, return_tensors="pt")["pixel_values"]
    width, height = picture().size
    return tile_grid((height, width), (TILE, TILE), LIMIT), pixels.permute(0, 2, 3, 1)


def main() -> None:
    (rows, columns), pixels = views()
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(2.4, 1.2, 2.9))
    width, height = picture().size
    for part, title, view in (
        (left, f"the image, {width} x {height}", picture()),
        (middle, "view 0, the thumbnail", pixels[0]),
    ):
        axes = part.subplots()
        axes.imshow(view)
        axes.set_axis_off()
        axes.set_title(title, fontsize=9)
    grid = right.subplots(rows, columns)
    for place, axes in enumerate(grid.flat):
        axes.imshow(pixels[1 + place])
        axes.set(xticks=[], yticks=[])
        axes.set_title(1 + place, fontsize=7, pad=2)
    right.suptitle(f"views 1 to {rows * columns}, {rows} x {columns} tiles of {TILE} pixels", fontsize=9)
    figure.savefig(FOLDER / "tiles.png", dpi=100)


if __name__ == "__main__":
    main()
