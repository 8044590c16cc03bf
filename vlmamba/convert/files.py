# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: tensors are read, code is not."""

import argparse
import codecs
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

# where training scripts put the weights, in the order in which their own evaluation looks
_PLACES = ("model", "state_dict", "model_state_dict", "module", "state_dict_ema", "model_ema", "ema")
# what data parallel wrappers and compilers put before every name
_WRAPPERS = ("module.", "_orig_mod.")


# harmless classes and builders of plain data that published checkpoints hold beside the weights; what training scripts
# call their settings is read as a dict
_INERT = [
    argparse.Namespace,
    (OrderedDict, "yacs.config.CfgNode"),
    (OrderedDict, "mmcv.utils.config.ConfigDict"),
    (OrderedDict, "mmengine.config.config.ConfigDict"),
    (OrderedDict, "mmengine.logging.history_buffer.HistoryBuffer"),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in (*"?bBhHiIlLqQefd", "S1", "U1")},
    *(
        (getattr(np._core.multiarray, name), f"{numpy}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for numpy in ("numpy.core", "numpy._core")
    ),
    (codecs.encode, "_codecs.encode"),
]
_FOREIGN = re.compile(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) (\S+)")


def read_checkpoint(path: str | Path, weights: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint file, on the CPU.

    A `.safetensors` file, or one of `torch.save`, of which only tensors and plain data are read: a pickled class or
    function is refused and never run. Wrappers' prefixes ("module.") are taken off the names.

    Args:
        path: of the file.
        weights: key under which the file holds the weights, as "model" or "state_dict_ema"; found when None.

    Raises:
        ValueError: the file is missing, damaged, holds code, or has no weights there; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {str(path)!r}: there is no such file; nothing is downloaded")
    content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    found = _unwrapped(content, weights, path)
    for prefix in _WRAPPERS:
        if found and all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    return found


def flattened(content: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a state dict whose parts are dicts of their own, under joined names; anything else is left out."""
    found = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, dict):
            found |= flattened(value, f"{prefix}{key}.")
    return found


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {str(path)!r} is truncated or damaged ({error})") from error


def _pickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_INERT):
            # tensors of a file as torch writes it today are read when they are used
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # torch raises many kinds for what a damaged archive holds
        reason = " ".join(str(error).split())
        if found := _FOREIGN.search(reason):
            raise ValueError(
                f"checkpoint {str(path)!r} holds {found[1]}, which is code and is not run; expected tensors and plain "
                "data: save its state dict alone where you trust it"
            ) from error
        raise ValueError(
            f"checkpoint {str(path)!r} is damaged, or no file of torch.save or safetensors: nothing was read"
        ) from error


def _is_weights(content: object) -> bool:
    return isinstance(content, dict) and any(isinstance(value, torch.Tensor) for value in content.values())


def _holds_weights(content: object) -> bool:
    """A state dict, or a dict with one for each part of a model."""
    parts = list(content.values()) if isinstance(content, dict) else []
    return _is_weights(content) or (bool(parts) and all(map(_is_weights, parts)))


def _unwrapped(content: Any, weights: str | None, path: Path) -> dict[str, torch.Tensor]:
    keys = sorted(map(str, content)) if isinstance(content, dict) else []
    if weights is not None:
        if weights not in keys or not _holds_weights(content[weights]):
            raise ValueError(
                f"checkpoint {str(path)!r} has no weights under {weights!r}; it has {', '.join(keys[:12])}"
            )
        content = content[weights]
    elif not _is_weights(content):
        place = next((name for name in _PLACES if _holds_weights(content.get(name) if keys else None)), None)
        if place is None:
            listed = ", ".join(keys[:12]) or f"a {type(content).__name__}"
            raise ValueError(f"checkpoint {str(path)!r} has no state dict; it has {listed}")
        content = content[place]
    return flattened(content)
