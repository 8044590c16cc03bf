# SPDX-License-Identifier: Apache-2.0
"""In which precision the ops compute."""

from collections.abc import Callable
from functools import wraps

import torch


def compute_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 when any input is float64 (or complex128), else float32: the dtype of the state."""
    wide = (torch.float64, torch.complex128)
    return torch.float64 if any(t is not None and t.dtype in wide for t in tensors) else torch.float32


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in its own dtype when that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def readable(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in a dtype that kernels read where they compute in `dtype`: its own if it is a common narrow one.

    float64 reads float64 alone; float32 reads float32 and both half precisions.
    """
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    return tensor if dtype == torch.float32 and tensor.dtype in narrow else tensor.to(dtype)


def in_full_precision(function: Callable) -> Callable:
    """A function of tensors, the first argument one of them, that autocast leaves alone."""

    @wraps(function)
    def run(tensor, *arguments):
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *arguments)

    return run
