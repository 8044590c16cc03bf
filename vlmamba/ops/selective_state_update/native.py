# SPDX-License-Identifier: Apache-2.0
"""One step of the selective scan on the compiled CPU kernel (`vlmamba/ops/native/update.cpp`); no gradients."""

import ctypes

import torch

from vlmamba.ops.native import TYPES, Operand, address, library


class StateUpdate(ctypes.Structure):
    """One call: `StateUpdate` of update.cpp, field by field."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "channels", "states", "threads", "softplus", "real_type")),
        *((n, Operand) for n in ("x", "dt", "B", "C", "z", "out")),
        *((n, ctypes.c_void_p) for n in ("A", "D", "dt_bias", "state", "next")),
    ]


def selective_state_update_native(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_softplus: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments and results as `selective_state_update_reference`."""
    rows = [None if v is None else v.contiguous() for v in (x, dt, B, C, z)]
    whole = [None if v is None else v.contiguous() for v in (A, D, dt_bias, state)]
    y, new = x.new_empty(x.shape), torch.empty_like(whole[-1])
    call = StateUpdate(*state.shape, torch.get_num_threads(), dt_softplus, TYPES[state.dtype])
    for name, tensor in zip(("x", "dt", "B", "C", "z", "out"), (*rows, y), strict=True):
        if tensor is not None:
            setattr(call, name, Operand(tensor.data_ptr(), (tensor.shape[1], 0, 0), TYPES[tensor.dtype]))
    for name, tensor in zip(("A", "D", "dt_bias", "state", "next"), (*whole, new), strict=True):
        setattr(call, name, address(tensor))
    library().vlmamba_state_update(ctypes.byref(call))
    return y, new
