# SPDX-License-Identifier: Apache-2.0
"""One step of the selective scan: what a language model runs for every generated token."""

import torch
import torch.nn.functional as F

from vlmamba.ops.checks import check_floating, check_shape
from vlmamba.ops.numerics import compute_dtype

_OP = "selective_state_update"


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
    wide, dt, A, B, C, state = (v.to(dtype) for v in (x, dt, A, B, C, state))
    dt = dt if dt_bias is None else dt + dt_bias.to(dtype)
    dt = F.softplus(dt) if dt_softplus else dt
    state = torch.exp(dt.unsqueeze(-1) * A) * state + (dt * wide).unsqueeze(-1) * B.unsqueeze(1)
    y = (state * C.unsqueeze(1)).sum(-1)
    y = y if D is None else y + D.to(dtype) * wide
    y = y if z is None else y * F.silu(z.to(dtype))
    return y.to(x.dtype), state
