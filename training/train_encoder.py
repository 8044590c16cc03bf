# SPDX-License-Identifier: Apache-2.0
"""Stage 0: train the Vim encoder to name what every patch of a scene shows.

    python -m training.train_encoder --recipe training/recipes/emoji_encoder.yaml

Every patch is a classification: the drawing whose box covers it, or background. That is many labels an image,
so an encoder learns to recognise and to place from few images. Run it again and it resumes.
"""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

import vlmamba  # noqa: F401 - registers the models
from training.common import Trainer, parse_recipe, run, training_arguments
from training.data.emoji_scenes import EmojiScenes, load_drawings
from training.patches import PatchNames, patch_loss
from vlmamba.models.vim import VimConfig, VimForImageClassification
from vlmamba.models.vlmamba import VLMambaImageProcessor


class PatchLabels(Dataset):
    """Scenes as (pixels, name of every patch)."""

    def __init__(self, scenes: EmojiScenes, patches: PatchNames, processor: VLMambaImageProcessor):
        self.scenes, self.patches, self.processor = scenes, patches, processor

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        scene = self.scenes.scene(index)
        pixels = self.processor(scene.image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": self.patches(scene)}


def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
    """The patches' loss in the form that transformers' Trainer takes."""
    return patch_loss(outputs.logits.flatten(0, 1), labels.flatten())


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
    patches = PatchNames(names, config)
    trainer = Trainer(
        model=VimForImageClassification(config),
        args=arguments,
        train_dataset=PatchLabels(train, patches, processor),
        eval_dataset=PatchLabels(test, patches, processor),
        processing_class=processor,
        compute_loss_func=loss,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )
    run(trainer, recipe)
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
