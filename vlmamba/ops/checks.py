# SPDX-License-Identifier: Apache-2.0
"""Argument checks shared by the ops: one clear `ValueError` that names the argument."""

import torch


def check_shape(op: str, name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise unless `tensor` has exactly the shape `expected`."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def check_floating(op: str, device: torch.device | None, **tensors: torch.Tensor | None) -> None:
    """Raise unless every given tensor is floating point (or complex) and lies on `device`, or on the first's."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{op}: {name} is a {type(tensor).__name__}, expected a tensor")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise ValueError(f"{op}: {name} has dtype {tensor.dtype}, expected a floating point dtype")
        device = tensor.device if device is None else device
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {device} as the first argument")


def check_integer(op: str, device: torch.device, **tensors: torch.Tensor | None) -> None:
    """Raise unless every given tensor has an integer dtype and lies on `device`."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.int32, torch.int64):
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(f"{op}: {name} is {kind}, expected an int32 or int64 tensor")
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {device} as the first argument")


def check_sequences(op: str, seq_idx: torch.Tensor, shape: tuple[int, int]) -> None:
    """Raise unless `seq_idx` has the shape `(batch, length)` and its numbers fit into the kernels' 32 bits."""
    check_shape(op, "seq_idx", seq_idx, shape)
    # a graph cannot depend on the numbers
    looked_at = seq_idx.dtype == torch.int64 and not torch.compiler.is_compiling() and type(seq_idx) is torch.Tensor
    if looked_at and not torch.equal(seq_idx.int().long(), seq_idx):
        raise ValueError(f"{op}: seq_idx has numbers beyond 32 bits, expected int32 values")
