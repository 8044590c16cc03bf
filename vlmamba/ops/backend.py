# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op runs, and why.

Every op folder offers its implementations in a table `name -> function`. The names, fastest first:

- `native`: compiled C++, float32 on the CPU; needs the library that the installation builds;
- `torch`: plain PyTorch, chunked, no compiler, any device;
- `reference`: the definition, a loop over time; slow, exact, what the others are tested against.

The choice is `auto` unless the environment variable `VLMAMBA_BACKEND` or the context manager `use_backend`
names one. `auto` takes the first that serves the tensor. `native` serves float32 on the CPU outside of
`torch.compile`, and not every op: elsewhere it falls through to the next, as `auto` does.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

from vlmamba.ops import native

logger = logging.getLogger(__name__)

BACKENDS = ("native", "torch", "reference")
ENVIRONMENT_VARIABLE = "VLMAMBA_BACKEND"

_chosen: ContextVar[str | None] = ContextVar("vlmamba_backend", default=None)


def _check(name: str, source: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"{source}: unknown backend {name!r}; expected one of auto, {', '.join(BACKENDS)}")
    if name == "native" and not native.available():
        raise ValueError(f"{source}: the backend 'native' is not available: {native.reason()}")
    return name


def requested_backend() -> str:
    """The name asked for by `use_backend` or by `VLMAMBA_BACKEND`; `auto` when nobody asked."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
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


def backend_for(tensor: torch.Tensor) -> str:
    """The name of the backend that serves tensors like this one (same device and dtype) now."""
    requested = requested_backend()
    # complex state matrices (S4D) are rare: only the definition handles them
    if tensor.is_complex():
        return "reference"
    if requested not in ("auto", "native"):
        return requested
    serves = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    # graphs can hold PyTorch operators only
    if not serves or torch.compiler.is_compiling():
        return "torch"
    if not native.available():
        _say_what_is_missing()
        return "torch"
    return "native"


@cache
def _say_what_is_missing() -> None:
    """Once a process: what would make the ops faster here."""
    logger.info("the ops run on the 'torch' backend: %s", native.reason())


def implementation(table: dict[str, Callable], tensor: torch.Tensor) -> Callable:
    """The function in an op's table that `backend_for` names; `torch` for ops without native code."""
    name = backend_for(tensor)
    return table[name] if name in table else table["torch"]
