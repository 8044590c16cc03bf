# SPDX-License-Identifier: Apache-2.0
"""Train an image classifier: any encoder of vlmamba, of transformers or of timm, from scratch.

    python -m training.train_classifier --recipe training/recipes/emoji_classifier_vim.yaml

A recipe has four sections. `model` is a Hugging Face config: `model_type` and its fields (of `timm_wrapper`:
`architecture` and `model_args`). `data` names the emoji drawings (`source: emoji`) or a folder with images
(`source: folder`: class folders, or what `datasets` saved). `augmentation` is torchvision's, `training` holds
transformers' TrainingArguments. The output folder gets model, image processor, recipe, log.jsonl and result.json.
Run it again and it resumes.
"""

import dataclasses
import difflib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageClassification, BitImageProcessor, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

import vlmamba
from training import common
from training.data.augmentation import Batches, TestImages, TrainingImages, train_transform
from training.data.emoji_classes import load_emoji
from training.data.labelled_images import RecipeError, Splits, load_folder

TOP = 5
EMOJI_NEEDS = ("vendors", "test_vendors", "renderings", "validation_renderings", "test_renderings", "seed")
NEEDED = {"folder": ("folder", "image_size"), "emoji": ("folder", "image_size", *EMOJI_NEEDS)}


def load_data(data: dict[str, Any]) -> Splits:
    """The images of a recipe's `data` section."""
    source = data.get("source")
    if source not in NEEDED:
        raise RecipeError(f"data.source is {source!r}, expected one of: {', '.join(NEEDED)}")
    if missing := [key for key in NEEDED[source] if key not in data]:
        raise RecipeError(f"data: source {source!r} needs {', '.join(missing)} as well")
    return load_folder(data) if source == "folder" else load_emoji(data, data["image_size"])


def build_model(section: dict[str, Any], names: list[str], image_size: int) -> PreTrainedModel:
    """The model of a recipe's `model` section with random weights and one output for each of `names`.

    Raises:
        RecipeError: unknown `model_type` or field, a value the config refuses, no classifier of this type, or a
            `num_labels` other than the number of classes.
    """
    options = dict(section)
    model_type, labels = options.pop("model_type", None), options.pop("num_labels", len(names))
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING.keys()), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see vlmamba's and transformers' model types"
        raise RecipeError(f"model.model_type: unknown {model_type!r}; {hint}")
    kind = CONFIG_MAPPING[model_type]
    if kind not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise RecipeError(f"model.model_type: {model_type!r} has no image classifier")
    if labels != len(names):
        raise RecipeError(f"model.num_labels is {labels}, but the training images have {len(names)} classes")
    fields = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    if unknown := sorted(options.keys() - fields):
        near = difflib.get_close_matches(unknown[0], fields, n=1)
        raise RecipeError(f"model: {model_type} has no {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    if "image_size" in fields:
        options.setdefault("image_size", image_size)
    try:
        config = AutoConfig.for_model(
            model_type, **options, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
        )
        return AutoModelForImageClassification.from_config(config)
    except (StrictDataclassError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"model: {' '.join(str(error).split())}") from error


class Clock(transformers.TrainerCallback):
    """Adds to every entry of the log the seconds spent on training steps so far, by the wall and of this process's CPU.

    Evaluating and saving do not count; the seconds of earlier sessions, up to their last checkpoint, do.
    """

    def on_train_begin(self, args, state, control, **options) -> None:
        done = [entry for entry in state.log_history if "cpu_seconds" in entry]
        self.spent = np.array([done[-1]["seconds"], done[-1]["cpu_seconds"]] if done else [0.0, 0.0])
        self._restart()

    def on_step_end(self, args, state, control, **options) -> None:
        before = self.last
        self._restart()
        self.spent += self.last - before

    def on_log(self, args, state, control, **options) -> None:
        state.log_history[-1].update(seconds=round(self.spent[0], 2), cpu_seconds=round(self.spent[1], 2))

    def on_evaluate(self, args, state, control, **options) -> None:
        self._restart()

    def on_save(self, args, state, control, **options) -> None:
        self._restart()

    def _restart(self) -> None:
        self.last = np.array([time.perf_counter(), time.process_time()])


class ClassifierTrainer(common.Trainer):
    """Cross-entropy with class numbers or, of mixed and smoothed training batches, with probabilities."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.model_accepts_loss_kwargs = False  # losses of accumulated batches are averaged here, not in the model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits.float(), labels)
        return (loss, outputs) if return_outputs else loss


def best(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`[B, classes]` -> the numbers of the `TOP` likeliest classes, best first."""
    return logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, float]:
    """Share of images whose class is the likeliest one, and among the five likeliest."""
    right = prediction.predictions == prediction.label_ids[:, None]
    return {"top1": float(right[:, 0].mean()), "top5": float(right.any(1).mean())}


def images_a_step(arguments: transformers.TrainingArguments) -> int:
    """How many training images one step of the optimiser reads, on all devices."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def train(recipe: dict[str, Any]) -> dict[str, Any]:
    """Train, or go on training, what the recipe says.

    Returns:
        What `result.json` in the output folder says: accuracies, parameters, images, seconds.

    Raises:
        RecipeError: the recipe does not fit the data or the library.
    """
    if missing := [name for name in ("model", "data", "training") if name not in recipe]:
        raise RecipeError(f"the recipe lacks {', '.join(missing)}")
    data, augmentation = recipe["data"], recipe.get("augmentation") or {}
    section = {**recipe["training"], "train_sampling_strategy": "sequential"}
    try:
        arguments = common.training_arguments({"training": section})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training: {' '.join(str(error).split())}") from error
    splits, size = load_data(data), data["image_size"]
    torch.manual_seed(arguments.seed)
    model = build_model(recipe["model"], splits.names, size)
    processor = BitImageProcessor(
        size={"shortest_edge": round(size / data.get("crop_share", 1))},
        crop_size={"height": size, "width": size},
        image_mean=data.get("image_mean", [0.5] * 3),
        image_std=data.get("image_std", [0.5] * 3),
    )
    images = arguments.max_steps * images_a_step(arguments)
    if images < 0:
        images = round(arguments.num_train_epochs * len(splits.train))
    arguments.num_train_epochs = 1  # `TrainingImages` counts the passes over the data
    tests = {name: TestImages(part, processor) for name, part in splits.tests.items()}
    trainer = ClassifierTrainer(
        model=model,
        args=arguments,
        data_collator=Batches(augmentation, len(splits.names), arguments.data_seed),
        train_dataset=TrainingImages(
            splits.train, train_transform(augmentation, size, processor), images, arguments.data_seed
        ),
        eval_dataset=TestImages(splits.validation, processor),
        processing_class=processor,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=best,
        callbacks=[Clock()],
    )
    common.run(trainer, recipe)
    spent = [entry for entry in trainer.state.log_history if "cpu_seconds" in entry][-1]
    figures = {"validation": _evaluate(trainer, trainer.eval_dataset)}
    figures |= {name: _evaluate(trainer, test) for name, test in tests.items()}
    result = {
        "model": recipe["model"],
        "parameters": model.num_parameters(),
        "classes": len(splits.names),
        "training_images": len(splits.train),
        "images_seen": min(images, trainer.state.global_step * images_a_step(arguments)),
        "seed": arguments.seed,
        "accuracy": figures,
        "seconds": spent["seconds"],
        "cpu_seconds": spent["cpu_seconds"],
        "threads": torch.get_num_threads(),
        "device": str(trainer.args.device),
        "versions": {
            "vlmamba": vlmamba.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    result["images_per_cpu_second"] = round(result["images_seen"] / max(result["cpu_seconds"], 1e-9), 1)
    (Path(arguments.output_dir) / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _evaluate(trainer: ClassifierTrainer, images: TestImages) -> dict[str, float]:
    found = trainer.evaluate(images)
    return {"images": len(images)} | {key: round(found[f"eval_{key}"], 4) for key in ("top1", "top5", "loss")}


def main() -> None:
    recipe = common.parse_recipe(__doc__, "training/recipes/emoji_classifier_vim.yaml")
    common.one_line_errors(lambda: print(json.dumps(train(recipe)["accuracy"], indent=2)), RecipeError)


if __name__ == "__main__":
    main()
