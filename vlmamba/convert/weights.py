# SPDX-License-Identifier: Apache-2.0
"""Official weights, under their official names, into models of this library."""

from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from vlmamba.convert.files import flattened
from vlmamba.convert.labels import name_labels
from vlmamba.models import ENCODERS

# family -> the folder of its models, where that has another name
_FOLDERS = {"cobra": "vlmamba"}
_FAMILIES = ("mamba", "mamba2", "mambadfuse", "fusionmamba", "psrben", "sigma", *_FOLDERS, *ENCODERS)
# so many differences of each kind are named in a message
_LISTED = 4


def list_families() -> list[str]:
    """The names that `from_official` takes."""
    return sorted(_FAMILIES)


def list_presets(family: str) -> dict[str, dict[str, Any]]:
    """Published models of a family: name -> what they differ in from its defaults; empty if none are listed.

    Of "vlmamba" these are the architectures that `VLMambaConfig.from_preset` knows, those of "cobra" among them.

    Raises:
        ValueError: an unknown family.
    """
    if family != "vlmamba":
        converter = converter_of(family)
    place = converter if family in _FOLDERS else import_module(f"vlmamba.models.{family}")
    return dict(getattr(place, "PRESETS", {}))


def from_official(
    family: str,
    state_dict: dict[str, torch.Tensor],
    arguments: dict[str, Any] | str | None = None,
    task: str | None = None,
    share_memory: bool = False,
) -> PreTrainedModel:
    """Build the model that an official constructor would build and fill it with official weights.

    Args:
        family: one of `list_families()`.
        state_dict: the official weights under their official names; dicts inside of it are parts of the model.
        arguments: the official constructor's arguments, what is left out takes its official default; or the name of a
            published model, of `list_presets(family)`; None for the published model that the weights fit.
        task: which model of a family that has several: "image-classification" (the default) or "backbone".
        share_memory: the model takes the tensors of `state_dict` where it can, instead of copies: a large one then fits
            in half the memory, and what changes the one changes the other.

    Returns:
        The model, in evaluation mode, float32; a classifier of as many classes as ImageNet has their names.

    Raises:
        ValueError: an unknown family, task or preset, an unsupported argument, or keys that are missing, unexpected or
            of another shape; the message lists them.

    Example:
        >>> model = from_official("vim", torch.load(path, weights_only=True)["model"], {"embed_dim": 192})
    """
    converter = converter_of(family)
    tasks = list(converter.MODELS)
    if task is not None and task not in tasks:
        raise ValueError(f"from_official: {family} has no task {task!r}; expected one of {', '.join(tasks)}")
    task = task or tasks[0]
    state_dict = flattened(state_dict)
    if isinstance(arguments, dict):
        try:
            config = converter.config_from_official(dict(arguments))
        except StrictDataclassError as error:  # is no ValueError
            raise ValueError(f"from_official({family!r}): {' '.join(str(error).split())}") from error
    elif hasattr(converter, "published"):
        config = converter.published(state_dict, arguments)
    else:
        config = _published(family, state_dict, arguments, task)
    renamed = _renamed(converter, state_dict, config, task)
    if hasattr(converter, "complete"):
        renamed = converter.complete(renamed, config)
    with torch.device("meta") if share_memory else nullcontext():
        model = converter.MODELS[task](config)
    if problems := list(differences(model, renamed)):
        raise ValueError(f"from_official({family!r}): the checkpoint does not fit: {_shortened(problems)}")
    if share_memory:
        model = type(model).from_pretrained(None, config=config, state_dict=renamed, dtype=torch.float32)
    else:
        model.load_state_dict(renamed)
    if family in ENCODERS:
        name_labels(model.config)
    if hasattr(converter, "finish"):
        converter.finish(model, arguments)
    return model.eval()


def differences(model: PreTrainedModel, renamed: dict[str, torch.Tensor]) -> Iterator[str]:
    """What keeps a state dict from fitting a model: missing, unexpected, or differently shaped tensors."""
    expected = model.state_dict()
    yield from (f"missing {key}" for key in sorted(expected.keys() - renamed.keys()))
    yield from (f"unexpected {key}" for key in sorted(renamed.keys() - expected.keys()))
    for key in sorted(expected.keys() & renamed.keys()):
        if renamed[key].shape != expected[key].shape:
            yield f"{key} has shape {tuple(renamed[key].shape)}, expected {tuple(expected[key].shape)}"


def closest_family(state_dict: dict[str, torch.Tensor]) -> str | None:
    """The family whose models have most of these names; None when no family has half of them."""
    shares = {}
    for family in ENCODERS:
        for preset in list(list_presets(family))[:1]:
            fits = _fit(family, state_dict, preset, next(iter(converter_of(family).MODELS)))[1]
            foreign = sum(problem.startswith("unexpected") for problem in fits)
            shares[family] = 1 - foreign / max(len(state_dict), 1)
    best = max(shares, key=shares.get, default=None)
    return best if best is not None and shares[best] >= 0.5 else None


def converter_of(family: str) -> ModuleType:
    """The module that knows a family's official names and arguments.

    Raises:
        ValueError: an unknown family.
    """
    if family not in _FAMILIES:
        raise ValueError(f"from_official: unknown family {family!r}; expected one of {', '.join(list_families())}")
    return import_module(f"vlmamba.models.{_FOLDERS.get(family, family)}.convert_{family}")


def _fit(
    family: str, state_dict: dict[str, torch.Tensor], preset: str, task: str
) -> tuple[PreTrainedConfig, list[str]]:
    """The config of a published model, and how the weights differ from it; nothing is allocated."""
    converter, kind = converter_of(family), import_module(f"vlmamba.models.{family}")
    fields = list_presets(family)[preset]
    config = getattr(kind, f"{ENCODERS[family]}Config")(**{"num_labels": 1000, **fields})
    with torch.device("meta"):
        shapes = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, tensor in state_dict.items()}
        renamed = _renamed(converter, shapes, config, task)
        if (head := renamed.get("classifier.bias")) is not None:
            config.num_labels = len(head)  # fine-tuned to other classes
        model = converter.MODELS[task](config)
    return config, list(differences(model, renamed))


def _renamed(
    converter: ModuleType, state_dict: dict[str, torch.Tensor], config: PreTrainedConfig, task: str
) -> dict[str, torch.Tensor]:
    try:
        return converter.rename(dict(state_dict), config, task)
    except (RuntimeError, ValueError, IndexError):  # tensors of quite another shape under a name of this family
        return dict(state_dict)


def _published(family: str, state_dict: dict[str, torch.Tensor], preset: str | None, task: str) -> PreTrainedConfig:
    """The config of the named published model, or of the one that the weights fit."""
    presets = list_presets(family)
    if not presets:
        raise ValueError(f"from_official: arguments is {preset!r}, expected the official constructor's for {family}")
    if preset is not None:
        if preset not in presets:
            raise ValueError(f"from_official: {family} has no preset {preset!r}; expected one of {', '.join(presets)}")
        return _fit(family, state_dict, preset, task)[0]
    fits = {name: _fit(family, state_dict, name, task) for name in presets}
    nearest = min(fits, key=lambda name: len(fits[name][1]))
    config, problems = fits[nearest]
    if problems:
        other = closest_family(state_dict)
        hint = f"; its names are those of {other!r}" if other not in (None, family) else ""
        raise ValueError(
            f"from_official({family!r}): no published model fits, nearest is {nearest!r}: {_shortened(problems)}{hint}"
        )
    alike = [name for name, (_, problems) in fits.items() if not problems]
    if any(_computing(fits[name][0]) != _computing(config) for name in alike):
        raise ValueError(
            f"from_official({family!r}): {' and '.join(alike)} have these shapes and compute differently; name one"
        )
    return config


def _computing(config: PreTrainedConfig) -> dict[str, Any]:
    """What of a config has a say in the outputs of a trained model."""
    return {name: value for name, value in config.to_dict().items() if name != "drop_path_rate"}


def _shortened(problems: list[str]) -> str:
    """The first of each kind, and how many more there are."""
    kinds = {"missing": [], "unexpected": [], "of another shape": []}
    for problem in problems:
        kinds[problem.split(" ", 1)[0] if " has shape " not in problem else "of another shape"].append(problem)
    parts = []
    for kind, found in kinds.items():
        parts += found[:_LISTED]
        if len(found) > _LISTED:
            parts.append(f"and {len(found) - _LISTED} more {kind}")
    return "; ".join(parts)
