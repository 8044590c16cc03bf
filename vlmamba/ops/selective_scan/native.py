# SPDX-License-Identifier: Apache-2.0
"""The selective scan on the compiled CPU kernel (`vlmamba/ops/native/selective_scan.cpp`), in float32 or float64.

The formula stands in `reference.py`, the operands in `register.py`. They are read where they lie, in their own dtypes,
as long as the last dimension is contiguous; rows are read and written in place through the path table.
"""

import ctypes

import torch

from vlmamba.ops.native import TYPES, Operand, Order, address, library, operand_rows
from vlmamba.ops.selective_scan.chunked import INTERVAL


class Scan(ctypes.Structure):
    """One call: `Scan` of selective_scan.cpp, field by field."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "paths", "channels", "states", "threads")),
        *((n, ctypes.c_int64) for n in ("softplus", "merge", "real_type")),
        ("order", Order),
        *((n, Operand) for n in ("x", "dt", "B", "C", "z", "out", "dout", "dz")),
        *((n, ctypes.c_void_p) for n in ("A", "D", "dt_bias", "state")),
        *((n, ctypes.c_void_p) for n in ("y", "last", "kept", "dlast")),
        *((n, ctypes.c_void_p) for n in ("dx", "ddt", "dA", "dB", "dC", "dD", "dbias", "dstate")),
    ]


class _Call:
    """A call being filled in; keeps every tensor that the kernel reads or writes alive."""

    def __init__(self, x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, softplus, merge):
        directions, channels, states = A.shape
        batch, _, length, _ = x.shape
        paths, seq_idx = (v if v is None else v.contiguous() for v in (paths, seq_idx))
        self.scan = Scan(batch, directions, channels, states, torch.get_num_threads(), softplus, merge, TYPES[A.dtype])
        self.scan.order = Order.of("selective_scan", paths, seq_idx, length, directions)
        self.tensors = [paths, seq_idx]
        self.rows(x=x, dt=dt, B=B, C=C, z=z)
        self.whole(A=A, D=D, dt_bias=dt_bias)

    def rows(self, **tensors: torch.Tensor | None) -> None:
        for name, tensor in tensors.items():
            tensor = operand_rows(tensor)
            self.tensors.append(tensor)
            setattr(self.scan, name, Operand.of(tensor))

    def whole(self, **tensors: torch.Tensor | None) -> None:
        for name, tensor in tensors.items():
            tensor = None if tensor is None else tensor.contiguous()
            self.tensors.append(tensor)
            setattr(self.scan, name, address(tensor))


def forward(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, state, softplus, merge, keep):
    """See `register.py`."""
    call = _Call(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, softplus, merge)
    batch, (directions, channels, size) = x.shape[0], A.shape
    out = x.new_empty(batch, 1 if merge else directions, x.shape[2], channels)
    last = A.new_empty(batch, directions, channels, size)
    y = A.new_empty(out.shape) if keep and z is not None else None
    states = A.new_empty(batch, directions, -(-call.scan.order.steps // INTERVAL), size, channels) if keep else None
    call.rows(out=out)
    call.whole(state=state, last=last, y=y, kept=states)
    library().vlmamba_scan_forward(ctypes.byref(call.scan))
    return out, last, y, states


def backward(dout, dlast, x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, y, states, softplus, merge):
    """See `register.py`."""
    call = _Call(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, softplus, merge)
    dz = None if z is None else z.new_empty(z.shape)
    dx, ddt, dB, dC = (A.new_empty(v.shape) for v in (x, dt, B, C))
    dA, dD, dbias = A.new_empty(A.shape), A.new_empty(A.shape[:2]), A.new_empty(A.shape[:2])
    dstate = A.new_empty(x.shape[0], *A.shape)
    call.rows(dout=dout, dz=dz)
    call.whole(y=y, kept=states, dlast=dlast, dx=dx, ddt=ddt, dA=dA, dB=dB, dC=dC, dD=dD, dbias=dbias, dstate=dstate)
    library().vlmamba_scan_backward(ctypes.byref(call.scan))
    dx, ddt, dB, dC = (g.to(v.dtype) for g, v in ((dx, x), (ddt, dt), (dB, B), (dC, C)))
    return dx, ddt, dA, dB, dC, None if D is None else dD, dz, None if dt_bias is None else dbias, dstate
