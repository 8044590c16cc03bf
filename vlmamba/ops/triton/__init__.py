# SPDX-License-Identifier: Apache-2.0
"""The GPU backend: whether Triton can run here."""

import importlib.util
import os
from functools import cache

import torch


@cache
def reason() -> str:
    """Why `available()` is False; empty when it is True."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "there is no GPU"
    return ""


def available() -> bool:
    """Whether Triton kernels can run on this machine."""
    return not reason()
