# SPDX-License-Identifier: Apache-2.0
"""Download emoji drawings of four vendors and write the scenes data set of the bundled VLM.

What it does, in order:
  1. fetches six pinned npm packages into --cache (about 180 MB; what is there already is kept)
  2. keeps the emoji that all four vendors draw and that have a plain name
  3. writes OUT/drawings       one row for each drawing and vendor
  4. writes OUT/scenes_test     fixed test scenes of the three training vendors
  5. writes OUT/scenes_openmoji fixed test scenes of a vendor that is never trained on
  6. writes OUT/info.json       counts, package versions and the seed

Training scenes are not written: training.data.emoji_scenes.EmojiScenes composes them on the fly.
Needs npm on the PATH and `pip install datasets pillow numpy tqdm resvg-py`.

example:
  python -m training.build_emoji --out data/emoji --cache ~/.cache/emoji
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import shutil
import subprocess
from pathlib import Path

import datasets
from PIL import Image
from tqdm import tqdm

from training.data import emoji_drawings, emoji_scenes
from training.data.emoji_questions import all_turns

DRAWING_FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("code", "name", "category", "subcategory")}
    | {"keywords": datasets.List(datasets.Value("string"))}
    | {"vendor": datasets.Value("string"), "colour": datasets.Value("string"), "image": datasets.Image()}
)
TURN = {name: datasets.Value("string") for name in ("kind", "question", "answer")}
SCENE_FEATURES = datasets.Features({"image": datasets.Image(), "questions": datasets.List(TURN)})


def fetch(package: str, version: str, cache: Path) -> Path:
    """The archive of one npm package: from `cache`, or downloaded into it with `npm pack`."""
    file = f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if (cache / file).exists():
        return cache / file
    if not shutil.which("npm"):
        raise SystemExit("npm is not on the PATH: install Node.js, or put the packages into --cache")
    partial = cache / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", f"{package}@{version}", "--loglevel=error", "--pack-destination", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (partial / file).exists():
        reason = " ".join(done.stderr.split())[:200]
        raise SystemExit(f"npm could not download {package}@{version}: {reason}")
    return (partial / file).rename(cache / file)


def drawing_rows(archives: dict[str, Path]) -> list[dict]:
    """One row for each drawing and vendor, of the emoji that every vendor draws."""
    names = emoji_drawings.read_names(archives["emojilib"])
    entries = emoji_drawings.wanted(archives["emoji-datasource"], names)
    vendors = emoji_drawings.IMAGES
    pictures = {name: emoji_drawings.read_images(archives[vendors[name][0]], name) for name in vendors}
    for vendor, found in pictures.items():
        if len(found) < 1000:
            raise SystemExit(f"{vendors[vendor][0]} holds only {len(found)} pictures in {vendors[vendor][1]}")
    shared = [entry for entry in entries if all(entry.code in found for found in pictures.values())]
    pairs = [(entry, vendor) for vendor in vendors for entry in shared]
    return [_row(entry, vendor, pictures) for entry, vendor in tqdm(pairs, desc="drawings")]


def _row(entry: emoji_drawings.Entry, vendor: str, pictures: dict[str, dict[str, bytes]]) -> dict:
    image = emoji_drawings.open_drawing(pictures[vendor][entry.code])
    seen = {"vendor": vendor, "colour": emoji_drawings.main_colour(image), "image": {"bytes": _png(image)}}
    return vars(entry) | seen


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def scene_rows(drawings: list[emoji_scenes.Drawing], seed: int, size: int, count: int) -> list[dict]:
    """`count` fixed scenes, each with every question that can be asked about it."""
    scenes = emoji_scenes.EmojiScenes(drawings, seed=seed, size=size, length=count)
    rows = []
    for index in tqdm(range(count), desc="scenes"):
        scene = scenes.scene(index)
        turns = all_turns(scene, scenes.rng(index, "turns"))
        rows.append({"image": {"bytes": _png(scene.image)}, "questions": [vars(turn) for turn in turns]})
    return rows


def save(rows: list[dict], features: datasets.Features, folder: Path) -> None:
    """Write rows as a data set folder; it appears under its name only once it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    datasets.Dataset.from_list(rows, features=features).save_to_disk(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def build(out: Path, cache: Path, seed: int = 2024, size: int = 128, scenes: int = 2000) -> dict:
    """Write the whole data folder and return what `info.json` says about it."""
    cache.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    versions = emoji_drawings.VERSIONS
    archives = {name: fetch(name, version, cache) for name, version in tqdm(versions.items(), desc="packages")}
    rows = drawing_rows(archives)
    save(rows, DRAWING_FEATURES, out / "drawings")
    sets = {
        "scenes_test": emoji_drawings.TRAINING_VENDORS,
        "scenes_openmoji": (emoji_drawings.UNSEEN_VENDOR,),
    }
    info = describe(rows) | {"versions": versions, "seed": seed, "size": size, "scenes": scenes}
    for name, vendors in sets.items():
        drawings = emoji_scenes.load_drawings(out / "drawings", vendors)
        made = scene_rows(drawings, seed, size, scenes)
        save(made, SCENE_FEATURES, out / name)
        kinds = collections.Counter(turn["kind"] for row in made for turn in row["questions"])
        info[name] = dict(sorted(kinds.items()))
    (out / "info.json").write_text(json.dumps(info, indent=2) + "\n")
    return info


def describe(rows: list[dict]) -> dict:
    """How many drawings there are, by vendor, category and colour."""
    counts = {key: dict(collections.Counter(row[key] for row in rows)) for key in ("vendor", "colour")}
    names = {row["name"]: row["category"] for row in rows}
    return {"names": len(names), "categories": dict(collections.Counter(names.values())), **counts}


def main() -> None:
    """Read the command line and build."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--out", type=Path, default=Path("runs/emoji"), help="folder to write (default: %(default)s)")
    cache = Path.home() / ".cache" / "vlmamba-emoji"
    parser.add_argument("--cache", type=Path, default=cache, help="where packages are kept (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2024, help="of the fixed test scenes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels of a scene's side (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=2000, help="scenes in each test set (default: %(default)s)")
    args = parser.parse_args()
    print(json.dumps(build(args.out, args.cache, args.seed, args.size, args.scenes), indent=2))


if __name__ == "__main__":
    main()
