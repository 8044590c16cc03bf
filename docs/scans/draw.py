# SPDX-License-Identifier: Apache-2.0
"""Draw the pictures of docs/scans.md again: python docs/scans/draw.py"""

from io import BytesIO
from pathlib import Path

from PIL import Image

from vlmamba.scans import Scan, get_scan, list_scans
from vlmamba.scans.picture import draw

FOLDER = Path(__file__).parent
DPI = 72
COLOURS = 128


def size_for(scan: Scan) -> tuple[int, ...]:
    """Large enough to see what is meant; odd where padding is to be seen."""
    if scan.kind == "video":
        return (3, 4, 4)
    if scan.name.startswith("local"):
        side = int(scan.name[len("local_w")])
        return (2 * side, 2 * side) if side == 7 else (3 * side, 3 * side) if side == 3 else (7, 7)
    if scan.kind == "modalities":
        return (3, 4)
    return (7, 7) if scan.kind in ("parts", "tokens") else (8, 8)


def pictured() -> list[str]:
    """All scans but the forms of windows that look like those of side 2."""
    return [name for name in list_scans() if not name.startswith(("local_w3_", "local_w7_"))]


def main() -> None:
    for name in pictured():
        scan, picture = get_scan(name), BytesIO()
        draw(scan, *size_for(scan)).savefig(picture, dpi=DPI)
        few_colours = Image.open(picture).convert("RGB").quantize(COLOURS)
        few_colours.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
