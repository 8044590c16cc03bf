# SPDX-License-Identifier: Apache-2.0
"""The compiled CPU kernels: finds and loads the shared library that `setup.py` builds into this folder."""

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch  # noqa: F401  its OpenMP runtime must be loaded before the library, which then shares it

_FOLDER = Path(__file__).parent


class Operand(ctypes.Structure):
    """A `(B, K, L, X)` tensor, contiguous in X: `Operand` of selective_scan.cpp."""

    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 3)]


class Scan(ctypes.Structure):
    """One call of the selective scan: `Scan` of selective_scan.cpp, field by field."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "paths", "length", "steps")),
        *((n, ctypes.c_int64) for n in ("channels", "states", "threads", "softplus")),
        *((n, Operand) for n in ("x", "dt", "B", "C", "dy")),
        *((n, ctypes.c_void_p) for n in ("A", "D", "dt_bias", "state", "rows", "sequence")),
        *((n, ctypes.c_void_p) for n in ("y", "last", "checkpoints", "dlast")),
        *((n, ctypes.c_void_p) for n in ("dx", "ddt", "dA", "dB", "dC", "dD", "dbias", "dstate")),
    ]


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
    library.vlmamba_scan_struct_size.restype = ctypes.c_int64
    if library.vlmamba_scan_struct_size() != ctypes.sizeof(Scan):
        return None, f"{files[0]} was built from other sources: reinstall vlmamba"
    library.vlmamba_target.restype = ctypes.c_char_p
    library.vlmamba_scan_checkpoint_size.restype = ctypes.c_int64
    library.vlmamba_scan_forward.restype = library.vlmamba_scan_backward.restype = None
    return library, ""


def available() -> bool:
    """Whether the native kernels can run on this machine."""
    return _load()[0] is not None


def reason() -> str:
    """Why `available()` is False; empty when it is True."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        RuntimeError: it is not available; the message says why.
    """
    loaded, why = _load()
    if loaded is None:
        raise RuntimeError(why)
    return loaded
