# SPDX-License-Identifier: Apache-2.0
"""Images and their classes: from a folder on disk, or whatever is given as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor


class RecipeError(ValueError):
    """What a recipe asks for does not fit the data or the library; one line for the person who wrote it."""


@dataclass
class LabelledImages:
    """Some images and the class of each.

    Attributes:
        name: of the split, for messages.
        images: pictures: PIL images, or uint8 arrays `[height, width, 3]`.
        labels: int64 `[n]`.
        numbers: int64 `[n]`, which of `images` each is; all in their order when None.
    """

    name: str
    images: Sequence[Any]
    labels: np.ndarray
    numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        """Image `index` as uint8 `[3, height, width]`.

        Raises:
            RecipeError: it cannot be read.
        """
        number = index if self.numbers is None else int(self.numbers[index])
        try:
            image = self.images[number]
            if isinstance(image, np.ndarray):
                return torch.from_numpy(np.array(image)).permute(2, 0, 1)
            return pil_to_tensor(image.convert("RGB"))
        except (OSError, SyntaxError, AttributeError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"data: image {number} of split {self.name!r} cannot be read: {reason}") from error


@dataclass
class Splits:
    """What a run trains on, what choices may be made on, and what is only ever reported."""

    names: list[str]
    train: LabelledImages
    validation: LabelledImages
    tests: dict[str, LabelledImages] = field(default_factory=dict)


class _Column(Sequence):
    """The images of a data set; `datasets` decodes one when it is asked for."""

    def __init__(self, rows: Any, column: str):
        self.rows, self.column = rows.select_columns([column]), column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index][self.column]


def load_folder(data: dict[str, Any]) -> Splits:
    """The images of a folder: class folders of image files, or what `datasets` saved there (`save_to_disk`).

    Args:
        data: a recipe's `data` section. `folder`; `image_column` ("image") and `label_column` ("label"); `train`
            ("train"), `validation` and `test` name the splits. Without `validation` the share `validation_share`
            (0.1) of the training images, chosen by `seed` (0), is held out.

    Raises:
        RecipeError: no such folder, split or column, no images, or a class that the training images lack.
    """
    sets = _read(Path(data["folder"]))
    columns = data.get("image_column", "image"), data.get("label_column", "label")
    chosen = {"train": data.get("train", "train")} | {key: data[key] for key in ("validation", "test") if key in data}
    rows = {key: _split(sets, key, name, columns) for key, name in chosen.items()}
    names = _names(rows["train"], columns[1])
    made = {key: _labelled(chosen[key], one, columns, names) for key, one in rows.items()}
    if "validation" not in made:
        share = data.get("validation_share", 0.1)
        made["train"], made["validation"] = _held_out(made["train"], share, data.get("seed", 0))
    return Splits(names, made["train"], made["validation"], {chosen["test"]: made["test"]} if "test" in made else {})


def _held_out(images: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """The images without a random share of them, and that share."""
    order = np.random.default_rng(seed).permutation(len(images))
    count = round(share * len(images))
    if not 0 < count < len(images):
        raise RecipeError(f"data.validation_share is {share} of {len(images)} images, expected some for each part")
    parts = np.sort(order[count:]), np.sort(order[:count])
    return tuple(LabelledImages(images.name, images.images, images.labels[part], part) for part in parts)


def _read(folder: Path) -> dict[str, Any]:
    import datasets

    if not folder.is_dir():
        raise RecipeError(f"data.folder: no folder {folder}")
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(folder) if saved else datasets.load_dataset("imagefolder", data_dir=str(folder))
    except (FileNotFoundError, ValueError) as error:  # `datasets` has a class of its own for an empty folder
        raise RecipeError(f"data.folder: no images in {folder}: {' '.join(str(error).split())[:200]}") from error
    return {"train": found} if isinstance(found, datasets.Dataset) else dict(found)


def _split(sets: dict[str, Any], key: str, name: str, columns: tuple[str, str]) -> Any:
    if name not in sets:
        raise RecipeError(f"data.{key} is {name!r}, expected a split of the data set: {', '.join(sets)}")
    rows = sets[name]
    for option, column in zip(("image_column", "label_column"), columns, strict=True):
        if column not in rows.column_names:
            raise RecipeError(f"data.{option} is {column!r}, expected one of: {', '.join(rows.column_names)}")
    if len(rows) < 2:
        raise RecipeError(f"data.{key}: split {name!r} holds {len(rows)} images, expected at least 2")
    return rows


def _values(rows: Any, column: str) -> list[Any]:
    return rows.select_columns([column])[:][column]


def _names(rows: Any, column: str) -> list[str]:
    names = getattr(rows.features[column], "names", None)
    return list(names) if names else [str(value) for value in sorted(set(_values(rows, column)))]


def _labelled(name: str, rows: Any, columns: tuple[str, str], names: list[str]) -> LabelledImages:
    values = _values(rows, columns[1])
    if own := getattr(rows.features[columns[1]], "names", None):
        values = [own[value] if 0 <= value < len(own) else value for value in values]
    number = {label: i for i, label in enumerate(names)}
    unknown = sorted({str(value) for value in values} - number.keys())
    if unknown:
        raise RecipeError(
            f"data: split {name!r} has {len(unknown)} class(es) that the {len(names)} of the training images do not "
            f"include: {', '.join(unknown[:5])}"
        )
    return LabelledImages(name, _Column(rows, columns[0]), np.array([number[str(value)] for value in values]))
