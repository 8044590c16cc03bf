# SPDX-License-Identifier: Apache-2.0
"""A model folder is checked before it is loaded, so that what is wrong with it can be said in one line."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vlmamba.assets import bundled_model
from vlmamba.cli.errors import CommandError
from vlmamba.layers.kernels import FAMILIES as TEXT_ONLY
from vlmamba.models import ENCODERS

MODEL_TYPE = "vlmamba"
CONFIG = "config.json"
PROCESSOR = "processor_config.json"
IMAGE_PROCESSOR = "preprocessor_config.json"
REQUIRED = (CONFIG, PROCESSOR, "tokenizer.json", "tokenizer_config.json")
OPTIONAL = ("generation_config.json", IMAGE_PROCESSOR)
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


def find_model(folder: Path | None) -> Path:
    """The folder to load, known to hold a whole VLMamba model.

    Args:
        folder: as given by the user; None for the bundled model.

    Raises:
        CommandError: the folder or one of its files is missing or damaged, or holds another kind of model.
    """
    folder = _existing(folder)
    if (folder / CONFIG).is_file():
        _check_kind(folder)
    for name in REQUIRED:
        if not (folder / name).is_file():
            raise _bad(folder, f"{name} is missing; expected a folder written by save_pretrained")
    files = {name: _json_object(folder, name) for name in (*REQUIRED, *OPTIONAL) if (folder / name).is_file()}
    if "image_processor" not in files[PROCESSOR] and not (folder / IMAGE_PROCESSOR).is_file():
        raise _bad(
            folder,
            f"{PROCESSOR} has no image_processor and {IMAGE_PROCESSOR} is missing; expected one of them",
        )
    for name in _weight_files(folder):
        _check_weights(folder, name)
    return folder


def _check_kind(folder: Path) -> None:
    """Said before files are missed that other models do not have."""
    model_type = _json_object(folder, CONFIG).get("model_type")
    if model_type == MODEL_TYPE:
        return
    expected = f"expected {MODEL_TYPE!r}"
    if model_type in ENCODERS:
        expected = f"an image encoder, which answers no questions; {expected}"
    elif model_type in TEXT_ONLY:
        expected = f"a text-only language model, which sees no pictures; {expected}"
    raise _bad(folder, f"{CONFIG} describes model_type {model_type!r}, {expected}")


def _existing(folder: Path | None) -> Path:
    if folder is None:
        folder = bundled_model()
        if not folder.is_dir():
            raise CommandError(
                f"the bundled model is missing: expected the folder '{folder}'; name another with --model DIR"
            )
    if not folder.exists():
        raise _bad(folder, "there is no such folder; expected a local folder, nothing is downloaded")
    if not folder.is_dir():
        raise _bad(folder, "it is a file; expected the folder of a model")
    return folder


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        raise _bad(folder, f"the weights are missing; expected {WEIGHTS} or {WEIGHTS_INDEX}")
    shards = _json_object(folder, WEIGHTS_INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise _bad(folder, f"{WEIGHTS_INDEX} has no weight_map")
    return sorted(set(shards.values()))


def _check_weights(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise _bad(folder, f"{name} is missing, which {WEIGHTS_INDEX} names")
    try:
        with safe_open(folder / name, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise _bad(folder, f"{name} is truncated or damaged ({error})") from error


def _json_object(folder: Path, name: str) -> dict:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad(folder, f"{name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _bad(folder, f"{name} is truncated or damaged ({error})") from error
    if not isinstance(content, dict):
        raise _bad(folder, f"{name} holds a JSON {type(content).__name__}, expected an object")
    return content


def _bad(folder: Path, problem: str) -> CommandError:
    return CommandError(f"--model '{folder}': {problem}")
