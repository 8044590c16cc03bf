# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints in, models of this library out."""

from importlib import import_module
from typing import Any

import torch
from transformers import PreTrainedModel

from vlmamba.models import ENCODERS

_CONVERTERS = {family: f"vlmamba.models.{family}.convert_{family}" for family in ("mamba", "mamba2", *ENCODERS)}


def list_families() -> list[str]:
    """The names that `from_official` takes."""
    return sorted(_CONVERTERS)


def from_official(
    family: str, state_dict: dict[str, torch.Tensor], arguments: dict[str, Any], task: str | None = None
) -> PreTrainedModel:
    """Build the model that an official constructor would build and fill it with official weights.

    Args:
        family: one of `list_families()`.
        state_dict: the official weights under their official names.
        arguments: the official constructor's arguments; what is left out takes its official default.
        task: which model of a family that has several: vmamba's "image-classification" (its default) or "backbone".

    Returns:
        The model, in evaluation mode, float32.

    Raises:
        ValueError: an unknown family or task, an unsupported argument, or keys that are missing, unexpected or of
            another shape; the message lists them.

    Example:
        >>> model = from_official("vim", torch.load(path, weights_only=True)["model"], {"embed_dim": 192})
    """
    if family not in _CONVERTERS:
        raise ValueError(f"from_official: unknown family {family!r}; expected one of {', '.join(list_families())}")
    converter = import_module(_CONVERTERS[family])
    tasks = getattr(converter, "TASKS", ())
    if task is not None and task not in tasks:
        expected = f"one of {', '.join(tasks)}" if tasks else "none, as the family has one model"
        raise ValueError(f"from_official: {family} has no task {task!r}; expected {expected}")
    options = {} if task is None else {"task": task}
    model, renamed = converter.from_official(dict(state_dict), dict(arguments), **options)
    expected = model.state_dict()
    problems = [f"missing {key}" for key in sorted(expected.keys() - renamed.keys())]
    problems += [f"unexpected {key}" for key in sorted(renamed.keys() - expected.keys())]
    problems += [
        f"{key} has shape {tuple(renamed[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & renamed.keys())
        if renamed[key].shape != expected[key].shape
    ]
    if problems:
        raise ValueError(f"from_official({family!r}): the checkpoint does not fit: {'; '.join(problems)}")
    model.load_state_dict(renamed)
    return model.eval()
