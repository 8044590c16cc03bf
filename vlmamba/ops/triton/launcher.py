# SPDX-License-Identifier: Apache-2.0
"""How kernels are started, and what their launchers must know of the device."""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# without a GPU (in the interpreter, or where kernels are only compiled) routes are chosen as for one of this size
DEFAULT_MULTIPROCESSORS = 132


def launch(kernel, programs: int, *arguments, num_warps: int, **constants) -> None:
    """Start `programs` copies of a kernel on the device of its first argument; none where there is nothing to do."""
    if not programs:
        return
    with torch.cuda.device_of(arguments[0]):
        # one stage: what the kernels ask for ahead, they ask for themselves
        kernel[(programs,)](*arguments, num_warps=num_warps, num_stages=1, **constants)


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors (compute units) share the programs."""
    if device.type != "cuda":
        return DEFAULT_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def fast() -> bool:
    """Whether kernels may hold instructions of NVIDIA hardware (`elementwise.py`)."""
    return not INTERPRETED and torch.version.hip is None


def given(tensors: tuple[torch.Tensor | None, ...], instead: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Kernels take a pointer for every operand; they never read those that are not there."""
    return tuple(instead if v is None else v for v in tensors)


def rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The (B, K, L, X) tensor, copied only if neighbours in X are no neighbours in memory."""
    if tensor is None or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()


def strides(tensor: torch.Tensor | None) -> tuple[int, int]:
    """Of batch and direction of a (B, K, L, X) tensor; 1 in K's place is every direction's."""
    if tensor is None:
        return 0, 0
    return tensor.stride(0), 0 if tensor.shape[1] == 1 else tensor.stride(1)


def row_strides(**tensors: torch.Tensor | None) -> dict[str, int]:
    """Distances between rows, which kernels know when they are compiled: a model has few, and addresses get short."""
    return {f"{name}_r": 0 if tensor is None else tensor.stride(2) for name, tensor in tensors.items()}


def blocks(size: int, block: int) -> int:
    return -(-size // block)


def power_of_two(size: int) -> int:
    """The smallest power of two that is no smaller."""
    return 1 << max(0, size - 1).bit_length()
