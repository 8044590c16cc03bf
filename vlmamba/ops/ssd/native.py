# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan on the compiled CPU kernel (`vlmamba/ops/native/ssd.cpp`): the forward pass and one step.

The formula stands in `reference.py`, the operands in `register.py`. Both backends keep the states of the same steps, so
that the backward pass is the matrix products of `chunked.py`.
"""

import ctypes

import torch

from vlmamba.ops.native import TYPES, Operand, Order, address, library, operand_rows
from vlmamba.ops.ssd.chunked import backward

__all__ = ["backward", "forward", "update"]


class Ssd(ctypes.Structure):
    """One call: `Ssd` of ssd.cpp, field by field."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "heads", "size", "groups", "states", "interval")),
        *((n, ctypes.c_int64) for n in ("threads", "softplus", "real_type")),
        *((n, ctypes.c_double) for n in ("low", "high")),
        ("order", Order),
        *((n, Operand) for n in ("x", "dt", "B", "C", "z", "out")),
        *((n, ctypes.c_void_p) for n in ("A", "D", "dt_bias", "state", "y", "last", "kept")),
    ]


def _call(x, dt, A, B, C, D, z, dt_bias, state, interval, softplus, low, high) -> tuple[Ssd, list[torch.Tensor | None]]:
    """The call without order and results, for (B, L, H, P) operands, and the tensors that must live as long."""
    batch, _, heads, size = x.shape
    # (B, L, H, P) -> (B, 1, L, H * P)
    rows = [v if v is None else operand_rows(v.flatten(2).unsqueeze(1)) for v in (x, dt, B, C, z)]
    whole = [v if v is None else v.contiguous() for v in (A, D, dt_bias, state)]
    call = Ssd(batch, heads, size, *B.shape[2:], interval, torch.get_num_threads(), softplus, TYPES[A.dtype], low, high)
    for name, tensor in zip(("x", "dt", "B", "C", "z"), rows, strict=True):
        setattr(call, name, Operand.of(tensor))
    for name, tensor in zip(("A", "D", "dt_bias", "state"), whole, strict=True):
        setattr(call, name, address(tensor))
    return call, [*rows, *whole]


def forward(x, dt, A, B, C, D, z, dt_bias, seq_idx, state, chunk_size, softplus, low, high, keep):
    """See `register.py`."""
    call, alive = _call(x, dt, A, B, C, D, z, dt_bias, state, chunk_size, softplus, low, high)
    batch, length, heads, size = x.shape
    seq_idx = None if seq_idx is None else seq_idx.contiguous()
    call.order = Order.of("ssd_scan", None, seq_idx, length, 1)
    out = x.new_empty(x.shape)
    shape = (heads, size, B.shape[3])
    last = A.new_empty(batch, *shape)
    y = A.new_empty(x.shape) if keep and z is not None else None
    states = A.new_empty(batch, -(-length // chunk_size), *shape) if keep else None
    call.out = Operand.of(out.flatten(2).unsqueeze(1))
    call.y, call.last, call.kept = address(y), address(last), address(states)
    library().vlmamba_ssd_forward(ctypes.byref(call))
    del alive
    return out, last, y, states


def update(state, x, dt, A, B, C, D, z, dt_bias, softplus, low, high):
    """One step, without gradients: x, z (B, H, P), dt (B, H), B, C (B, G, N), state (B, H, P, N) -> y and the state."""
    x, dt, B, C, z = (v if v is None else v.unsqueeze(1) for v in (x, dt, B, C, z))
    call, alive = _call(x, dt, A, B, C, D, z, dt_bias, state, 1, softplus, low, high)
    y, new = x.new_empty(x.shape), torch.empty_like(state, memory_format=torch.contiguous_format)
    call.out, call.last = Operand.of(y.flatten(2).unsqueeze(1)), address(new)
    call.order = Order(1, 1, True)
    library().vlmamba_ssd_update(ctypes.byref(call))
    del alive
    return y.squeeze(1), new
