# SPDX-License-Identifier: Apache-2.0
"""One step of the selective scan: what a language model runs for every generated token."""

from collections.abc import Callable

import torch

from vlmamba.ops.backend import implementation
from vlmamba.ops.checks import check_floating, check_shape
from vlmamba.ops.numerics import compute_dtype, readable
from vlmamba.ops.registration import in_graph
from vlmamba.ops.selective_state_update.native import selective_state_update_native
from vlmamba.ops.selective_state_update.reference import selective_state_update_reference

_OP = "selective_state_update"


def _triton() -> Callable:
    from vlmamba.ops.selective_state_update.triton import selective_state_update_triton

    return selective_state_update_triton


_BACKENDS = {
    "triton": _triton,
    "native": lambda: selective_state_update_native,
    "torch": lambda: selective_state_update_reference,
}


def selective_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    *,
    dt_softplus: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advance the state by one token: `selective_scan` for L = 1, without its overhead.

    Args:
        state: `[B, D, N]`, not modified.
        x: `[B, D]`. dt: `[B, D]`. A: `[D, N]`. B, C: `[B, N]`. D, dt_bias: `[D]`. z: `[B, D]`.
        dt_softplus: apply softplus to dt + bias.

    Returns:
        y `[B, D]` in x's dtype and the new state `[B, D, N]` in float32 (float64 when an input is).

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    check_floating(_OP, x.device, x=x, state=state, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    if A.is_complex() or state.is_complex():
        raise ValueError(f"{_OP}: A and state must be real; scan complex states with selective_scan")
    if x.dim() != 2:
        raise ValueError(f"{_OP}: x has shape {tuple(x.shape)}, expected [B, D]")
    (batch, channels), size = x.shape, A.shape[-1]
    check_shape(_OP, "state", state, (batch, channels, size))
    check_shape(_OP, "A", A, (channels, size))
    for name, tensor, shape in (
        ("dt", dt, (batch, channels)),
        ("B", B, (batch, size)),
        ("C", C, (batch, size)),
        ("D", D, (channels,)),
        ("z", z, (batch, channels)),
        ("dt_bias", dt_bias, (channels,)),
    ):
        if tensor is not None:
            check_shape(_OP, name, tensor, shape)

    dtype = compute_dtype(state, x, dt, A, B, C)
    state, A, D, dt_bias = (v if v is None else v.to(dtype) for v in (state, A, D, dt_bias))
    rounded = x.dtype
    x, dt, B, C, z = (v if v is None else readable(v, dtype) for v in (x, dt, B, C, z))
    operands = (state, x, dt, A, B, C, D, z, dt_bias)
    step = selective_state_update_reference if in_graph(*operands) else implementation(_BACKENDS, state)()
    y, state = step(*operands, dt_softplus)
    return y.to(rounded), state
