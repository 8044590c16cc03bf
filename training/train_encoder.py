# SPDX-License-Identifier: Apache-2.0
"""Stage 0: train the Vim encoder to name what every patch of a scene shows.

    python -m training.train_encoder --recipe training/recipes/emoji_encoder.yaml

Every patch is a classification: the drawing whose box covers it, or background. That is many labels an image,
so an encoder learns to recognise and to place from few images. Run it again and it resumes.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

import vlmamba  # noqa: F401 - registers the models
from training.common import Trainer, parse_recipe, run, training_arguments
from training.data.emoji_scenes import EmojiScenes, Scene, load_drawings
from vlmamba.models.vim import VimConfig, VimForImageClassification
from vlmamba.models.vlmamba import VLMambaImageProcessor

IGNORE = -100


class PatchLabels(Dataset):
    """Scenes as (pixels, name of every patch); name 0 is background.

    A patch counts for a drawing whose box covers at least half of it, for the background below a tenth.
    """

    def __init__(self, scenes: EmojiScenes, names: list[str], config: VimConfig, processor: VLMambaImageProcessor):
        self.scenes, self.config, self.processor = scenes, config, processor
        self.number = {name: i + 1 for i, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        scene = self.scenes.scene(index)
        pixels = self.processor(scene.image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": self.labels(scene)}

    def labels(self, scene: Scene) -> torch.Tensor:
        """`[rows * columns]` names."""
        rows, columns = self.config.grid_size
        cover = torch.zeros(len(scene.objects), rows, columns)
        for item, area in zip(scene.objects, cover, strict=True):
            area.copy_(torch.outer(self._share(item.y, item.h, rows), self._share(item.x, item.w, columns)))
        best, which = cover.max(0)
        numbers = torch.tensor([self.number[item.drawing.name] for item in scene.objects])
        labels = torch.where(best >= 0.5, numbers[which], IGNORE)
        return labels.masked_fill(cover.sum(0) < 0.1, 0).flatten()

    def _share(self, start: int, length: int, count: int) -> torch.Tensor:
        """How much of each patch, along one axis, the interval covers."""
        first = torch.arange(count) * self.config.patch_stride
        overlap = (first + self.config.patch_size).clamp(max=start + length) - first.clamp(min=start)
        return overlap.clamp(min=0) / self.config.patch_size


def patch_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of all patches; half of it is the background's, however many patches that has."""
    logits, labels = outputs.logits.flatten(0, 1), labels.flatten()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none", label_smoothing=0.05)
    background, drawn = labels == 0, labels > 0
    return (losses[background].mean() + 3 * losses[drawn].mean()) / 4


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of drawn patches named right, and of background seen as such."""
    right = prediction.predictions == prediction.label_ids
    drawn, background = prediction.label_ids > 0, prediction.label_ids == 0
    return {
        "drawn_accuracy": float(right[drawn].mean()),
        "background_accuracy": float(right[background].mean()),
    }


def main() -> None:
    recipe = parse_recipe(__doc__, "training/recipes/emoji_encoder.yaml")
    data = recipe["data"]
    drawings = load_drawings(Path(data["folder"]) / "drawings", data["vendors"])
    names = sorted({drawing.name for drawing in drawings})
    config = VimConfig(
        **recipe["model"],
        class_token="none",
        pooling="none",
        id2label=dict(enumerate(["background", *names])),
    )
    processor = VLMambaImageProcessor(size={"height": config.image_size, "width": config.image_size})
    arguments = training_arguments(recipe)
    torch.manual_seed(arguments.seed)
    length = arguments.max_steps * arguments.per_device_train_batch_size
    train = EmojiScenes(drawings, seed=data["seed"], size=config.image_size, length=length)
    test = EmojiScenes(drawings, seed=data["seed"] + 1, size=config.image_size, length=data["test_scenes"])
    trainer = Trainer(
        model=VimForImageClassification(config),
        args=arguments,
        train_dataset=PatchLabels(train, names, config, processor),
        eval_dataset=PatchLabels(test, names, config, processor),
        processing_class=processor,
        compute_loss_func=patch_loss,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    run(trainer, recipe)
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
