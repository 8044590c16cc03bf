# SPDX-License-Identifier: Apache-2.0
"""Training images with torchvision's augmentation; image number n of a run is the same however often it resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2
from transformers import BaseImageProcessor

from training.data.labelled_images import LabelledImages, RecipeError

OPTIONS = ("crop", "padding", "scale", "flip", "rand_augment", "erase", "mixup", "cutmix", "label_smoothing")


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Random numbers of torch that depend on `numbers` alone."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def train_transform(options: dict[str, Any], size: int, processor: BaseImageProcessor) -> v2.Transform:
    """uint8 `[3, H, W]` -> float `[3, size, size]`, augmented and normalised as `processor` does.

    Args:
        options: a recipe's `augmentation` section: `crop`: "resized" (a random part of `scale`, (0.08, 1), of the
            area), "padded" (resized, then shifted by up to `padding`, 4, pixels) or "none"; `flip`; `rand_augment`:
            RandAugment's arguments; `erase`: probability of an erased rectangle.
    """
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise RecipeError(f"augmentation: unknown {', '.join(unknown)}; expected some of: {', '.join(OPTIONS)}")
    crop = options.get("crop", "none")
    resize = v2.Resize((size, size), antialias=True)
    crops = {
        "none": [resize],
        "padded": [resize, v2.RandomCrop(size, padding=options.get("padding", 4), padding_mode="reflect")],
        "resized": [v2.RandomResizedCrop(size, scale=options.get("scale", (0.08, 1)), antialias=True)],
    }
    if crop not in crops:
        raise RecipeError(f"augmentation.crop is {crop!r}, expected one of: {', '.join(crops)}")
    steps = [*crops[crop]]
    if options.get("flip"):
        steps.append(v2.RandomHorizontalFlip())
    if options.get("rand_augment"):
        steps.append(v2.RandAugment(**options["rand_augment"]))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]
    if options.get("erase"):
        steps.append(v2.RandomErasing(options["erase"]))
    return v2.Compose(steps)


class TrainingImages(Dataset):
    """`length` images: pass after pass over the data, each in an order of its own, augmented anew.

    Order and augmentation depend on the seed and the image's number only: not on the model, the number of loader
    processes or where a run was interrupted.
    """

    def __init__(self, images: LabelledImages, transform: v2.Transform, length: int, seed: int):
        self.images, self.transform, self.length, self.seed = images, transform, length, seed
        self._pass, self._order = -1, None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        index = self.index(number)
        image = self.images.image(index)
        with seeded(self.seed, 0, number):
            pixels = self.transform(image)
        return {"pixel_values": pixels, "labels": int(self.images.labels[index]), "number": number}

    def index(self, number: int) -> int:
        """Which image comes as number `number`."""
        turn, position = divmod(number, len(self.images))
        if turn != self._pass:
            self._pass, self._order = turn, np.random.default_rng((self.seed, turn)).permutation(len(self.images))
        return int(self._order[position])


class TestImages(Dataset):
    """Images as the processor that is saved with the model prepares them."""

    __test__ = False  # no test case

    def __init__(self, images: LabelledImages, processor: BaseImageProcessor):
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.processor(self.images.image(index), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": int(self.images.labels[index])}


class Batches:
    """Items to batches; `TrainingImages` are mixed (`mixup`, `cutmix`) and get smoothed targets `[B, classes]`."""

    def __init__(self, options: dict[str, Any], num_classes: int, seed: int):
        self.num_classes, self.seed = num_classes, seed
        self.smoothing = options.get("label_smoothing", 0.0)
        kinds = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
        mixes = [kind(alpha=options[key], num_classes=num_classes) for key, kind in kinds.items() if options.get(key)]
        self.mix = v2.RandomChoice(mixes) if mixes else None

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = default_collate(items)
        if "number" not in batch:
            return batch
        first = int(batch.pop("number")[0])
        if self.mix is None:
            targets = F.one_hot(batch["labels"], self.num_classes).float()
        else:
            with seeded(self.seed, 1, first):
                batch["pixel_values"], targets = self.mix(batch["pixel_values"], batch["labels"])
        batch["labels"] = targets * (1 - self.smoothing) + self.smoothing / self.num_classes
        return batch
