# SPDX-License-Identifier: Apache-2.0
"""The causal convolution on the compiled CPU kernel (`vlmamba/ops/native/causal_conv1d.cpp`).

The formula stands in `reference.py`, the operands in `register.py`.
"""

import ctypes

import torch

from vlmamba.ops.native import TYPES, Operand, Order, address, library, operand_rows


class Conv(ctypes.Structure):
    """One call: `Conv` of causal_conv1d.cpp, field by field."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "paths", "channels", "taps", "threads", "silu", "real_type")),
        ("order", Order),
        *((n, Operand) for n in ("x", "out", "dy")),
        *((n, ctypes.c_void_p) for n in ("weight", "bias", "state", "y", "last", "dlast")),
        *((n, ctypes.c_void_p) for n in ("dx", "dweight", "dbias", "dstate")),
    ]


class ConvUpdate(ctypes.Structure):
    """One step: `ConvUpdate` of update.cpp, field by field."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "channels", "taps", "threads", "silu", "real_type")),
        *((n, Operand) for n in ("x", "out")),
        *((n, ctypes.c_void_p) for n in ("weight", "bias", "state", "next")),
    ]


def _call(x, weight, bias, paths, seq_idx, state, silu) -> tuple[Conv, list[torch.Tensor | None]]:
    """The call without its results, and the tensors that must live as long."""
    x = operand_rows(x)
    whole = [None if v is None else v.contiguous() for v in (weight, bias, paths, seq_idx, state)]
    weight, bias, paths, seq_idx, state = whole
    directions, channels, taps = weight.shape
    call = Conv(x.shape[0], directions, channels, taps, torch.get_num_threads(), silu, TYPES[weight.dtype])
    call.order = Order.of("causal_conv1d", paths, seq_idx, x.shape[2], directions)
    call.x = Operand.of(x)
    call.weight, call.bias, call.state = address(weight), address(bias), address(state)
    return call, [x, *whole]


def forward(x, weight, bias, paths, seq_idx, state, silu):
    """See `register.py`."""
    call, alive = _call(x, weight, bias, paths, seq_idx, state, silu)
    directions, channels, taps = weight.shape
    last = weight.new_empty(x.shape[0], directions, channels, taps - 1)
    shape = (x.shape[0], directions, x.shape[2], channels)
    # rows that are visited once are written as they are; others add up in full precision
    y = (x if call.order.once else weight).new_empty(shape)
    if call.order.once:
        call.out = Operand.of(y)
    else:
        call.y = address(y)
    call.last = address(last)
    library().vlmamba_conv_forward(ctypes.byref(call))
    del alive
    return y.to(x.dtype), last.to(x.dtype)


def backward(dy, dlast, x, weight, bias, paths, seq_idx, state, silu):
    """See `register.py`."""
    call, alive = _call(x, weight, bias, paths, seq_idx, state, silu)
    directions, channels, taps = weight.shape
    dy = operand_rows(dy)
    dlast = None if dlast is None else dlast.to(weight.dtype).contiguous()
    dx, dweight, dbias = weight.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:2])
    dstate = weight.new_empty(x.shape[0], directions, channels, taps - 1)
    call.dy, call.dlast = Operand.of(dy), address(dlast)
    call.dx, call.dweight, call.dbias, call.dstate = (address(v) for v in (dx, dweight, dbias, dstate))
    library().vlmamba_conv_backward(ctypes.byref(call))
    del alive
    return dx.to(x.dtype), dweight, None if bias is None else dbias, dstate


def update(x, state, weight, bias, silu):
    """One step, without gradients: x (B, D), state (B, D, W - 1), weight (D, W), bias (D) -> y and the new state."""
    x, state, weight, bias = (None if v is None else v.contiguous() for v in (x, state, weight, bias))
    y, new = torch.empty_like(x), torch.empty_like(state)
    call = ConvUpdate(*x.shape, weight.shape[1], torch.get_num_threads(), silu, TYPES[x.dtype])
    call.x, call.out = (Operand(v.data_ptr(), (x.shape[1], 0, 0), TYPES[x.dtype]) for v in (x, y))
    call.weight, call.bias, call.state, call.next = (address(v) for v in (weight, bias, state, new))
    library().vlmamba_conv_update(ctypes.byref(call))
    return y, new
