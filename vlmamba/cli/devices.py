# SPDX-License-Identifier: Apache-2.0
"""Where and in which precision a model runs, by the names that people type."""

import re

import torch

from vlmamba.cli.errors import CommandError
from vlmamba.ops import backend_for

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str) -> torch.device:
    """The device that a `--device` names.

    Raises:
        CommandError: there is no such device, or this machine lacks it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise CommandError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise CommandError("--device 'mps': this machine has no MPS device; expected auto or cpu")
    found = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise CommandError(f"--device {name!r}: this machine has {found or 'no'} CUDA device(s); expected auto or cpu")
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """The dtype that a `--dtype` names; "auto" for that of the weights.

    Raises:
        CommandError: there is no such dtype.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in DTYPES:
        raise CommandError(f"--dtype {name!r}: expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def find_backend(device: torch.device, dtype: torch.dtype) -> str:
    """The kernel backend that serves such tensors.

    Raises:
        CommandError: `VLMAMBA_BACKEND` names none, or one that this machine lacks.
    """
    try:
        return backend_for(torch.empty(0, dtype=dtype, device=device))
    except ValueError as error:
        raise CommandError(str(error)) from error
