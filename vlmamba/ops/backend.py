# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op runs, and why.

Every op folder offers its implementations in a table `name -> implementation`. The names, fastest first:

- `triton`: GPU kernels, NVIDIA and AMD; on the CPU under `TRITON_INTERPRET=1`, for tests;
- `native`: compiled C++ for the CPU; needs the library that the installation builds;
- `torch`: plain PyTorch, no compiler, any device;
- `reference`: the definition, a loop over time; slow, exact, what the others are tested against.

The choice is `auto` unless the environment variable `VLMAMBA_BACKEND` or the context manager `use_backend`
names one. `auto` takes the first that serves the tensor's device and dtype; so does a named backend that
does not serve them, and an op without an implementation of that name.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TypeVar

import torch

from vlmamba.ops import native, triton

logger = logging.getLogger(__name__)

BACKENDS = ("triton", "native", "torch", "reference")
ENVIRONMENT_VARIABLE = "VLMAMBA_BACKEND"
_COMPILED = {"triton": triton, "native": native}

_chosen: ContextVar[str | None] = ContextVar("vlmamba_backend", default=None)

Implementation = TypeVar("Implementation")


def _check(name: str, source: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"{source}: unknown backend {name!r}; expected one of auto, {', '.join(BACKENDS)}")
    if name in _COMPILED and not _COMPILED[name].available():
        raise ValueError(f"{source}: the backend {name!r} is not available: {_COMPILED[name].reason()}")
    return name


def requested_backend() -> str:
    """The name asked for by `use_backend` or by `VLMAMBA_BACKEND`; `auto` when nobody asked."""
    chosen = _chosen.get()
    return _environment() if chosen is None else chosen


@torch.compiler.assume_constant_result
def _environment() -> str:
    return _check(os.environ.get(ENVIRONMENT_VARIABLE) or "auto", ENVIRONMENT_VARIABLE)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the `with` block, in this thread, on the backend `name` (one of `auto` and `BACKENDS`).

    Example:
        >>> with vlmamba.ops.use_backend("reference"):
        ...     y = vlmamba.ops.selective_scan(x, dt, A, B, C)
    """
    token = _chosen.set(_check(name, "use_backend"))
    try:
        yield
    finally:
        _chosen.reset(token)


def _serves(name: str, tensor: torch.Tensor) -> bool:
    """Whether a backend takes tensors of this device and dtype; complex ones go to the definition alone."""
    if tensor.is_complex():
        return name == "reference"
    if name == "triton":
        device = "cuda" if torch.cuda.is_available() else "cpu"  # the interpreter's tensors
        return tensor.device.type == device and tensor.dtype != torch.float64
    return name != "native" or tensor.device.type == "cpu"


def backend_for(tensor: torch.Tensor) -> str:
    """The name of the backend that serves tensors like this one (same device and dtype) now."""
    requested = requested_backend()
    if requested != "auto" and _serves(requested, tensor):
        return requested
    for name in BACKENDS:
        if not _serves(name, tensor):
            continue
        if name == "triton" and tensor.device.type == "cpu":
            continue  # the interpreter serves only who asks for it
        if name not in _COMPILED or _COMPILED[name].available():
            return name
        _say_what_is_missing(name)
    raise AssertionError("the definition serves every tensor")


def wants_definition(tensor: torch.Tensor) -> bool:
    """Whether the definition serves tensors like this one; looks for no library, so that graphs can be drawn."""
    return tensor.is_complex() or requested_backend() == "reference"


@cache
def _say_what_is_missing(name: str) -> None:
    """Once a process: what would make the ops faster here."""
    logger.info("the ops run without the backend %r: %s", name, _COMPILED[name].reason())


def implementation(table: dict[str, Implementation], tensor: torch.Tensor) -> Implementation:
    """The entry of an op's table that `backend_for` names; `torch` for ops without one of that name."""
    name = backend_for(tensor)
    return table[name] if name in table else table["torch"]
