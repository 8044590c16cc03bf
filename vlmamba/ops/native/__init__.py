# SPDX-License-Identifier: Apache-2.0
"""The compiled CPU kernels: finds and loads the shared library that `setup.py` builds into this folder."""

import ctypes
import logging
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch  # its OpenMP runtime must be loaded before the library, which then shares it

from vlmamba.ops.paths import check_paths, path_facts

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
SOURCES_VERSION = 5  # as vlmamba_version() in targets.cpp: raise both when an interface changes
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}  # `Type` of common.h


class Operand(ctypes.Structure):
    """A `(B, K, L, X)` tensor, contiguous in X: `Operand` of common.h."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 3), ("type", ctypes.c_int64)]

    @classmethod
    def of(cls, tensor: torch.Tensor | None) -> "Operand":
        """The operand that a 4-D tensor is; 1 in K's place is every direction's. The caller keeps the tensor alive."""
        if tensor is None:
            return cls()
        batch, direction, row, _ = tensor.stride()
        strides = (batch, 0 if tensor.shape[1] == 1 else direction, row)
        return cls(tensor.data_ptr(), strides, TYPES[tensor.dtype])


class Order(ctypes.Structure):
    """In which order rows are visited: `Order` of common.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("length", "steps", "once")),
        *((name, ctypes.c_void_p) for name in ("rows", "sequence")),
    ]

    @classmethod
    def of(cls, op: str, paths: torch.Tensor | None, seq_idx: torch.Tensor | None, length: int, directions: int):
        """The order of contiguous int32 tables; the caller keeps them alive.

        Raises:
            ValueError: a row of the table is out of bounds, which a compiled graph has not looked at before.
        """
        if paths is None:
            return cls(length, length, True, None, address(seq_idx))
        check_paths(op, paths, directions, length)
        return cls(length, paths.shape[1], path_facts(paths, length).complete, paths.data_ptr(), address(seq_idx))


def operand_rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor, copied only if its memory does not fit an `Operand`."""
    if tensor is None:
        return None
    _, direction, _, last = tensor.stride()
    fits = (last == 1 or tensor.shape[-1] == 1) and (direction or tensor.shape[1] == 1)
    return tensor if fits else tensor.contiguous()


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why not."""
    files = [path for suffix in EXTENSION_SUFFIXES if (path := _FOLDER / f"_native{suffix}").exists()]
    if not files:
        return None, "the native library was not built: install a C++ compiler and reinstall vlmamba"
    try:
        library = ctypes.CDLL(str(files[0]))
    except OSError as error:
        return None, f"the native library does not load: {error}"
    if not hasattr(library, "vlmamba_version") or library.vlmamba_version() != SOURCES_VERSION:
        return None, f"{files[0]} was built from other sources: reinstall vlmamba"
    library.vlmamba_target.restype = ctypes.c_char_p
    if not shares_threads(library):
        logger.warning("%s and torch use two OpenMP runtimes: their threads will compete for the cores", files[0].name)
    return library, ""


def shares_threads(library: ctypes.CDLL) -> bool:
    """Whether a library's threads are torch's: both find the same OpenMP runtime, or one of them uses none."""
    files = list((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))
    try:
        runtimes = [ctypes.cast(lib.omp_get_max_threads, ctypes.c_void_p) for lib in (library, ctypes.CDLL(files[0]))]
    except (AttributeError, IndexError, OSError):
        return True
    return runtimes[0].value == runtimes[1].value


def available() -> bool:
    """Whether the native kernels can run on this machine."""
    return _load()[0] is not None


def reason() -> str:
    """Why `available()` is False; empty when it is True."""
    return _load()[1]


def instruction_set() -> str:
    """Which of "baseline", "avx2" and "avx512" the kernels use."""
    return library().vlmamba_target().decode()


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        RuntimeError: it is not available; the message says why.
    """
    loaded, why = _load()
    if loaded is None:
        raise RuntimeError(why)
    return loaded
