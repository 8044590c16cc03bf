# SPDX-License-Identifier: Apache-2.0
"""Emoji drawings as a classification: one drawing on a varied background, tested on a vendor never trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from training.data.emoji_scenes import Drawing, Placed, jittered, load_drawings, turned, visible_background
from training.data.labelled_images import LabelledImages, RecipeError, Splits

LABELS = ("name", "category", "subcategory")


def render(drawing: Drawing, rng: Random, size: int) -> np.ndarray:
    """uint8 `[size, size, 3]`: the drawing, turned and scaled, somewhere on a background."""
    piece = turned(drawing.image, rng)
    scale = rng.uniform(0.65, 1.0) * size / max(piece.size)
    w, h = (max(1, round(side * scale)) for side in piece.size)
    placed = Placed(drawing, rng.randint(0, size - w), rng.randint(0, size - h), w, h)
    canvas = visible_background([placed], rng, size)
    patch = jittered(piece.resize((w, h), Image.Resampling.BILINEAR), rng)
    canvas.paste(patch, (placed.x, placed.y), patch)
    return np.asarray(canvas)


def load_emoji(data: dict[str, Any], size: int) -> Splits:
    """Renderings of the drawings that `training.build_emoji` wrote, kept in its folder for the next run.

    Args:
        data: a recipe's `data` section. `folder`; `vendors` and `test_vendors`; `label`: one of `LABELS`; `categories`:
            only drawings of these; how often each drawing is rendered: `renderings`, `validation_renderings`,
            `test_renderings`; `seed`.
        size: side of the images, in pixels.

    Returns:
        Training and validation images of `vendors` (other renderings of the same drawings), and one test set for
        each of `test_vendors`.
    """
    folder, label = Path(data["folder"]), data.get("label", "name")
    if label not in LABELS:
        raise RecipeError(f"data.label is {label!r}, expected one of: {', '.join(LABELS)}")
    if not (folder / "drawings").is_dir():
        raise RecipeError(f"data.folder: no drawings in {folder}; write them with python -m training.build_emoji")
    drawings = {v: load_drawings(folder / "drawings", [v]) for v in (*data["vendors"], *data["test_vendors"])}
    categories = {drawing.category for found in drawings.values() for drawing in found}
    kept = data.get("categories", categories)
    if unknown := sorted(set(kept) - categories):
        raise RecipeError(f"data.categories: unknown {unknown[0]!r}, expected some of: {', '.join(sorted(categories))}")
    drawings = {v: [drawing for drawing in found if drawing.category in kept] for v, found in drawings.items()}
    for vendor, found in drawings.items():
        if not found:
            raise RecipeError(f"data.vendors: {folder} has no drawings of {vendor!r}")
    known = [drawing for vendor in data["vendors"] for drawing in drawings[vendor]]
    names = sorted({getattr(drawing, label) for drawing in known})

    def split(name: str, chosen: Sequence[Drawing], times: int) -> LabelledImages:
        labels = np.array([names.index(getattr(drawing, label)) for drawing in chosen])
        return LabelledImages(name, _rendered(folder, name, chosen, times, data["seed"], size), np.tile(labels, times))

    return Splits(
        names,
        split("train", known, data["renderings"]),
        split("validation", known, data["validation_renderings"]),
        {vendor: split(vendor, drawings[vendor], data["test_renderings"]) for vendor in data["test_vendors"]},
    )


def _rendered(
    folder: Path, name: str, drawings: Sequence[Drawing], times: int, seed: int, size: int
) -> Sequence[np.ndarray]:
    """uint8 `[times * drawings, size, size, 3]`, mapped from a file that is written where it is missing."""
    marks = [name, times, seed, size, [(d.vendor, d.code, d.image.size) for d in drawings]]
    file = folder / "renderings" / f"{name}-{hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]}.npy"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(".partial")
        shape = (times * len(drawings), size, size, 3)
        pixels = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        for index in tqdm(range(shape[0]), desc=f"rendering {name}"):
            pixels[index] = render(drawings[index % len(drawings)], Random(f"{seed}/{name}/{index}"), size)
        pixels.flush()
        partial.rename(file)
    return np.load(file, mmap_mode="r")
