# SPDX-License-Identifier: Apache-2.0
"""What the training scripts share: recipes, the optimiser's groups, runs that can be resumed."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers.trainer_utils import get_last_checkpoint


def parse_recipe(description: str, default: str) -> dict[str, Any]:
    """Read the recipe named on the command line; `key=value` arguments override it ("training.max_steps=10")."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path(default), help="YAML recipe (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.max_steps=100")
    arguments = parser.parse_args()
    if not arguments.recipe.is_file():
        parser.error(f"--recipe: no file {arguments.recipe}")
    recipe = yaml.safe_load(arguments.recipe.read_text())
    for override in arguments.overrides:
        key, found, value = override.partition("=")
        if not found:
            parser.error(f"{override!r} is not of the form key=value")
        *path, last = key.split(".")
        section = recipe
        for part in path:
            section = section.setdefault(part, {})
        section[last] = yaml.safe_load(value)
    return recipe


class Trainer(transformers.Trainer):
    """transformers' Trainer that decays only matrices: no state matrix, skip, norm, bias or embedding."""

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        kept = ("A_log", "embed", "token", "conv1d")
        named = [(name, p) for name, p in model.named_parameters() if p.dim() > 1 and not name.endswith(".D")]
        return [name for name, _ in named if not any(part in name for part in kept)]


def training_arguments(recipe: dict[str, Any]) -> transformers.TrainingArguments:
    """The recipe's `training` section over defaults that fit a machine without a GPU as well as one with."""
    defaults = {
        "remove_unused_columns": False,
        "report_to": "none",
        "save_total_limit": 2,
        "logging_steps": 50,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "seed": 0,
        "data_seed": 0,
    }
    return transformers.TrainingArguments(**(defaults | recipe["training"]))


class StopAt(transformers.TrainerCallback):
    """Ends a run before its planned last step; the learning rate follows the plan."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **options) -> None:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True


def run(trainer: Trainer, recipe: dict[str, Any]) -> None:
    """Train from the last checkpoint in the output folder, if there is one; leave the model, recipe and log there.

    A recipe with `stop_at` ends at that step.
    """
    if "stop_at" in recipe:
        trainer.add_callback(StopAt(recipe["stop_at"]))
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    checkpoint = get_last_checkpoint(str(folder))
    if checkpoint:
        print(f"resuming from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    log = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
    (folder / "log.jsonl").write_text(log)


def one_line_errors(job: Callable[[], None], kind: type[Exception]) -> None:
    """Call `job`; an error of `kind`, which is the caller's to mend, ends the program with its message and code 2."""
    try:
        job()
    except kind as error:
        # one that comes out of a loader process carries its traceback, the message last
        lines = str(error).strip().splitlines()
        print(f"Error: {lines[-1].removeprefix(f'{kind.__module__}.{kind.__name__}: ')}", file=sys.stderr)
        raise SystemExit(2) from None
