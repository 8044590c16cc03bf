# SPDX-License-Identifier: Apache-2.0
"""Small scenes of one to four drawings on a varied background, each fixed by (seed, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from training.data.emoji_backgrounds import background
from training.data.emoji_questions import Turn, all_turns, countable, sample_turns


@dataclass(eq=False)
class Drawing:
    """One vendor's drawing of a named thing, as a cropped RGBA picture in memory."""

    code: str
    name: str
    category: str
    subcategory: str
    keywords: list[str]
    vendor: str
    colour: str
    image: Image.Image

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of the name."""
        return frozenset(self.name.split())

    @cached_property
    def tone(self) -> tuple[np.ndarray, float]:
        """Mean colour of what is drawn, and how far its pixels stray from it."""
        pixels = np.asarray(self.image).reshape(-1, 4)
        opaque = pixels[pixels[:, 3] > 128, :3].astype(float)
        return opaque.mean(axis=0), float(opaque.std(axis=0).max())


@dataclass
class Placed:
    """A drawing and the box of pixels it covers: left, top, width, height."""

    drawing: Drawing
    x: int
    y: int
    w: int
    h: int


@dataclass
class Scene:
    """A picture, what is in it, and a few drawings that are not (to ask about)."""

    image: Image.Image
    objects: list[Placed]
    absent: list[Drawing]


def confusable(one: Drawing, other: Drawing) -> bool:
    """Whether naming one could mean the other: "dog" and "dog face", "dog" and "poodle"."""
    if one.words <= other.words or other.words <= one.words:
        return True
    return one.name in other.keywords or other.name in one.keywords


def compose(
    drawings: Sequence[Drawing], rng: Random, size: int = 128, twins: dict[str, list[Drawing]] | None = None
) -> Scene:
    """One scene of `size` x `size` pixels; the names in it can always be told apart.

    `twins` is `by_name(drawings)`; pass it to save the time of working it out for every scene.
    """
    count = rng.choices((1, 2, 3, 4), (4, 3, 2, 1))[0]
    chosen = _choose(drawings, rng, count, twins or by_name(drawings))
    pieces = [(drawing, turned(drawing.image, rng)) for drawing in chosen]
    placed = _layout(pieces, rng, size)
    canvas = visible_background(placed, rng, size)
    for item, piece in zip(placed, pieces, strict=False):
        patch = jittered(piece[1].resize((item.w, item.h), Image.Resampling.BILINEAR), rng)
        canvas.paste(patch, (item.x, item.y), patch)
    return Scene(canvas, placed, _absent(drawings, [item.drawing for item in placed], rng))


def by_name(drawings: Sequence[Drawing]) -> dict[str, list[Drawing]]:
    """Name to all the drawings of that name, one for each vendor."""
    found: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        found.setdefault(drawing.name, []).append(drawing)
    return found


def _choose(drawings: Sequence[Drawing], rng: Random, count: int, twins: dict[str, list[Drawing]]) -> list[Drawing]:
    chosen = [rng.choice(drawings)]
    if count > 1 and countable(chosen[0].name) and rng.random() < 0.4:
        chosen += rng.choices(twins[chosen[0].name], k=rng.randint(1, min(2, count - 1)))
    for _ in range(50):
        if len(chosen) >= count:
            break
        drawing = rng.choice(drawings)
        if not any(confusable(drawing, other) for other in chosen):
            chosen.append(drawing)
    rng.shuffle(chosen)
    return chosen


def _absent(drawings: Sequence[Drawing], present: list[Drawing], rng: Random) -> list[Drawing]:
    """Four drawings that are not in the scene; the first is of a category that is, where one was found."""
    picked = [rng.choice(drawings) for _ in range(12)]
    picked = [one for one in picked if not any(confusable(one, other) for other in present)]
    category = rng.choice(present).category
    near = next((one for one in picked if one.category == category), None)
    return ([near] if near else []) + [one for one in picked if one is not near][:3]


def turned(image: Image.Image, rng: Random) -> Image.Image:
    """A drawing turned by up to 12 degrees and cropped to what is drawn."""
    image = image.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, expand=True)
    return image.crop(image.getchannel("A").getbbox())


def jittered(patch: Image.Image, rng: Random) -> Image.Image:
    """A drawing of slightly other contrast and brightness."""
    gain, offset = rng.uniform(0.9, 1.1), rng.uniform(-12, 12)
    curve = 128 + gain * (np.arange(256) - 128) + offset
    return patch.point(curve.clip(0, 255).astype(int).tolist() * 3 + list(range(256)))


def _layout(pieces: list[tuple[Drawing, Image.Image]], rng: Random, size: int) -> list[Placed]:
    """Boxes that do not touch; the sizes shrink a little each time the drawings do not fit."""
    sides = _sides(len(pieces), rng)
    shrink = 1.0
    while True:
        placed: list[Placed] = []
        for side, (drawing, image) in zip(sides, pieces, strict=True):
            scale = side * shrink * size / max(image.size)
            w, h = (max(1, round(length * scale)) for length in image.size)
            spot = _free_spot(placed, w, h, rng, size)
            if spot is None:
                break
            placed.append(Placed(drawing, *spot, w, h))
        if len(placed) == len(pieces):
            return placed
        shrink *= 0.97


def _sides(count: int, rng: Random) -> list[float]:
    if count == 1:
        return [rng.uniform(0.4, 0.95)]
    if rng.random() < 0.5:
        return [rng.choice((rng.uniform(0.25, 0.3), rng.uniform(0.4, 0.48))) for _ in range(count)]
    return [rng.uniform(0.25, 0.48) for _ in range(count)]


def _free_spot(placed: list[Placed], w: int, h: int, rng: Random, size: int) -> tuple[int, int] | None:
    for _ in range(25):
        x, y = rng.randint(0, size - w), rng.randint(0, size - h)
        if all(x > o.x + o.w or o.x > x + w or y > o.y + o.h or o.y > y + h for o in placed):
            return x, y
    return None


def visible_background(placed: list[Placed], rng: Random, size: int) -> Image.Image:
    """A background that does not swallow a drawing of its own colour."""
    for _ in range(6):
        pixels = background(rng, size)
        if not any(_swallowed(item, pixels) for item in placed):
            break
    return Image.fromarray(pixels)


def _swallowed(item: Placed, pixels: np.ndarray) -> bool:
    mean, spread = item.drawing.tone
    under = pixels[item.y : item.y + item.h : 3, item.x : item.x + item.w : 3].reshape(-1, 3).mean(axis=0)
    return spread < 60 and bool(np.linalg.norm(under - mean) < 70)


class EmojiScenes:
    """Scenes and their questions by index: the same seed and index give the same scene everywhere.

    `turns` is how many questions to sample for each scene; None gives all that can be asked.
    """

    def __init__(
        self,
        drawings: Sequence[Drawing],
        seed: int = 0,
        size: int = 128,
        length: int = 1_000_000,
        turns: int | None = None,
    ) -> None:
        self.drawings = list(drawings)
        self.twins = by_name(self.drawings)
        self.seed, self.size, self.length, self.turns = seed, size, length, turns

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Scene, list[Turn]]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        scene, rng = self.scene(index), self.rng(index, "turns")
        return scene, all_turns(scene, rng) if self.turns is None else sample_turns(scene, rng, self.turns)

    def scene(self, index: int) -> Scene:
        """The scene alone."""
        return compose(self.drawings, self.rng(index, "scene"), self.size, self.twins)

    def rng(self, index: int, purpose: str) -> Random:
        """The random numbers that fix one scene, or the questions about it."""
        return Random(f"{self.seed}/{index}/{purpose}")


def load_drawings(folder: Path, vendors: Sequence[str]) -> list[Drawing]:
    """The drawings of some vendors from the folder that `training.build_emoji` wrote."""
    import datasets

    rows = datasets.load_from_disk(folder)
    rows = rows.select([i for i, vendor in enumerate(rows["vendor"]) if vendor in vendors])
    return [Drawing(**row | {"image": row["image"].convert("RGBA")}) for row in rows]
