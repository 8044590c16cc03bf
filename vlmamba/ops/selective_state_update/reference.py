# SPDX-License-Identifier: Apache-2.0
"""One step of the selective scan by its definition, in plain PyTorch; the formula: `selective_scan/reference.py`."""

import torch
import torch.nn.functional as F


def selective_state_update_reference(
    state: torch.Tensor,  # (B, D, N)
    x: torch.Tensor,  # (B, D)
    dt: torch.Tensor,  # (B, D)
    A: torch.Tensor,  # (D, N)
    B: torch.Tensor,  # (B, N)
    C: torch.Tensor,  # (B, N)
    D: torch.Tensor | None,  # (D,)
    z: torch.Tensor | None,  # (B, D)
    dt_bias: torch.Tensor | None,  # (D,)
    dt_softplus: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y (B, D) in x's dtype and the new state, computed in the state's dtype; differentiable."""
    dtype = state.dtype
    wide, dt, B, C = (v.to(dtype) for v in (x, dt, B, C))
    dt = dt if dt_bias is None else dt + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    state = torch.exp(dt.unsqueeze(-1) * A) * state + (dt * wide).unsqueeze(-1) * B.unsqueeze(1)
    y = (state * C.unsqueeze(1)).sum(-1)
    y = y if D is None else y + D * wide
    y = y if z is None else y * F.silu(z.to(dtype))
    return y.to(x.dtype), state
