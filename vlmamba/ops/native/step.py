# SPDX-License-Identifier: Apache-2.0
"""Calls of linear.cpp and mamba_step.cpp: what one generated token runs through."""

import ctypes

import torch

from vlmamba.ops.native import TYPES, address, library


class Values(ctypes.Structure):
    """Numbers of any type: `Values` of linear_call.h."""

    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int64)]

    @classmethod
    def of(cls, tensor: torch.Tensor | None) -> "Values":
        """A contiguous tensor's; the caller keeps it alive."""
        return cls() if tensor is None else cls(tensor.data_ptr(), TYPES.get(tensor.dtype, 0))


class Linear(ctypes.Structure):
    """A linear map: `Linear` of linear_call.h."""

    _fields_ = [
        ("weight", Values),
        ("scale", ctypes.c_void_p),
        ("bias", Values),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
    ]

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None, inputs: int) -> "Linear":
        """Of contiguous tensors as `vlmamba.ops.linear` takes them; the caller keeps them alive."""
        return cls(Values.of(weight), address(scale), Values.of(bias), inputs, weight.shape[0])


class MambaLayer(ctypes.Structure):
    """A Mamba-1 layer with its states: `MambaLayer` of mamba_layer.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("hidden", "channels", "states", "rank", "taps")),
        *((name, Linear) for name in ("in_proj", "x_proj", "dt_proj", "out_proj")),
        *((name, Values) for name in ("conv_weight", "conv_bias", "A_log", "D", "norm")),
        ("epsilon", ctypes.c_double),
        ("conv_state", Values),
        ("state", ctypes.c_void_p),
    ]


def run_linear(linear: Linear, x: torch.Tensor) -> torch.Tensor:
    """Contiguous float32 `[rows, inputs]` -> `[rows, outputs]`."""
    rows = x.shape[0]
    y = x.new_empty(rows, linear.outputs)
    # plain integers would be cut to 32 bits
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    arguments = (pointer(x.data_ptr()), number(rows), pointer(y.data_ptr()), number(torch.get_num_threads()))
    library().vlmamba_linear(ctypes.byref(linear), *arguments)
    return y


def run_mamba_layers(layers: ctypes.Array, x: torch.Tensor) -> torch.Tensor:
    """One token through layers of the same sizes, contiguous float32 `[B, hidden]`; updates their states."""
    y = torch.empty_like(x)
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    sizes = (number(len(layers)), number(x.shape[0]))
    tensors = (pointer(x.data_ptr()), pointer(y.data_ptr()))
    library().vlmamba_mamba_step(layers, *sizes, *tensors, number(torch.get_num_threads()))
    return y
