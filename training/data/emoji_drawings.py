# SPDX-License-Identifier: Apache-2.0
"""Which emoji become training drawings, what each is called, and which colour it has."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.emoji_names import LEFT_OUT, RENAMED

VERSIONS = {
    "emoji-datasource": "16.0.0",
    "emojilib": "4.0.3",
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "openmoji": "17.0.0",
}
TRAINING_VENDORS = ("google", "twitter", "fluent")
UNSEEN_VENDOR = "openmoji"
IMAGES = {
    "google": ("emoji-datasource-google", "package/img/google/64/"),
    "twitter": ("emoji-datasource-twitter", "package/img/twitter/64/"),
    "fluent": ("@lobehub/fluent-emoji-3d", "package/assets/"),
    "openmoji": ("openmoji", "package/color/svg/"),
}
LONGEST_SIDE = 96

CATEGORIES = {
    "Smileys & Emotion": "faces and hearts",
    "Animals & Nature": "animals and nature",
    "Food & Drink": "food and drink",
    "Travel & Places": "travel and places",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "shapes",
}


@dataclass(frozen=True)
class Entry:
    """One emoji that is drawn by every vendor: its code points and what it is called."""

    code: str
    name: str
    category: str
    subcategory: str
    keywords: list[str]


def members(archive: Path, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Every file of an npm archive whose path starts with `prefix`, read in one pass."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(prefix):
                yield member.name.removeprefix(prefix), tar.extractfile(member).read()


def _read_json(archive: Path, path: str) -> list | dict:
    for _, data in members(archive, path):
        return json.loads(data)
    raise SystemExit(f"{archive.name} lacks {path}")


def short_code(code: str) -> str:
    """Code points as every vendor can agree on them: lower case and without variation selectors."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def read_images(archive: Path, vendor: str) -> dict[str, bytes]:
    """The picture files of one vendor by short code."""
    found = members(archive, IMAGES[vendor][1])
    return {short_code(Path(name).stem): data for name, data in found if "/" not in name}


def wanted(archive: Path, names: dict[str, list[str]]) -> list[Entry]:
    """The entries worth drawing, in the order of the emoji list, one for each name."""
    listed = _read_json(archive, "package/emoji.json")
    entries = (_entry(row, names) for row in sorted(listed, key=lambda row: row["sort_order"]))
    unique = {entry.name: entry for entry in reversed([entry for entry in entries if entry])}
    return list(reversed(unique.values()))


def read_names(archive: Path) -> dict[str, list[str]]:
    """Short code to the names and keywords that emojilib gives it."""
    table = _read_json(archive, "package/dist/emoji-en-US.json")
    return {short_code("-".join(f"{ord(sign):04x}" for sign in signs)): words for signs, words in table.items()}


def _entry(row: dict, names: dict[str, list[str]]) -> Entry | None:
    code = short_code(row["unified"])
    if row["category"] not in CATEGORIES or code not in names:
        return None
    label, *keywords = (word.replace(" ", "_") for word in names[code])
    clock_face = label.endswith(("_o_clock", "_thirty"))
    symbol = row["category"] == "Symbols" and row["subcategory"] != "geometric"
    if label in LEFT_OUT or clock_face or symbol:
        return None
    name = RENAMED.get(label, label.replace("_", " ")).lower()
    words = [word.replace("_", " ").lower() for word in keywords]
    return Entry(code, name, CATEGORIES[row["category"]], row["subcategory"], words)


def open_drawing(data: bytes) -> Image.Image:
    """A vendor's picture file as RGBA, cropped to what is drawn, at most `LONGEST_SIDE` pixels long."""
    image = _rendered(data) if b"<svg" in data[:300] else Image.open(io.BytesIO(data)).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox())
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return image


def _rendered(data: bytes) -> Image.Image:
    try:
        import resvg_py
    except ImportError as error:
        raise SystemExit("the OpenMoji drawings are SVG: pip install resvg-py") from error
    png = resvg_py.svg_to_bytes(svg_string=data.decode(), width=144)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


COLOURS = ("black", "gray", "white", "brown", "red", "orange", "yellow", "green", "blue", "purple", "pink")


def main_colour(image: Image.Image, share: float = 0.6) -> str:
    """The colour word that covers at least `share` of the opaque pixels, or "" when none does."""
    opaque = np.asarray(image.getchannel("A")) > 128
    if not opaque.any():
        return ""
    pixels = np.asarray(image.convert("RGB").convert("HSV")).astype(float)[opaque]
    counts = np.bincount(_colour_index(pixels), minlength=len(COLOURS))
    best = int(counts.argmax())
    return COLOURS[best] if counts[best] >= share * len(pixels) else ""


def _colour_index(pixels: np.ndarray) -> np.ndarray:
    hue, saturation, value = pixels[:, 0] * 360 / 255, pixels[:, 1] / 255, pixels[:, 2] / 255
    pale, dark = saturation < 0.17, value < 0.24
    reddish, warm = (hue < 12) | (hue >= 345), (hue >= 12) & (hue < 46)
    rules = [
        dark | (pale & (value < 0.3)),
        pale & (value < 0.82),
        pale,
        (warm | reddish) & (value < 0.72) & (saturation < 0.85) & (warm | (value < 0.5)),
        reddish & (saturation >= 0.5),
        warm & (hue < 39) & (saturation >= 0.5),
        (hue >= 39) & (hue < 68) & (saturation >= 0.3),
        (hue >= 68) & (hue < 168),
        (hue >= 168) & (hue < 256),
        (hue >= 256) & (hue < 305),
        (hue >= 305) | reddish,
    ]
    return np.select(rules, range(len(rules)), default=COLOURS.index("brown"))
