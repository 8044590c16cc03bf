# SPDX-License-Identifier: Apache-2.0
r"""The definition of Mamba-2's scan (state space duality, Dao & Gu 2024, arXiv:2405.21060, section 6).

For every batch b and head h with its group g = h // (H / G), a scalar decay and a state of P x N numbers:

    dt_t = clamp(softplus(dt_t + dt_bias), low, high)                   (softplus optional)
    h_t  = exp(dt_t * A) * h_{t-1} + dt_t * x_t B_t^T
    y_t  = h_t C_t + D * x_t                                            (then y_t * silu(z_t), if there is a gate)

Where `seq_idx` changes, another packed sequence begins and h_{t-1} is zero; the initial state continues the first one.
"""

import torch
import torch.nn.functional as F


def ssd_reference(
    x: torch.Tensor,  # (B, L, H, P)
    dt: torch.Tensor,  # (B, L, H)
    A: torch.Tensor,  # (H,)
    B: torch.Tensor,  # (B, L, G, N)
    C: torch.Tensor,  # (B, L, G, N)
    D: torch.Tensor | None,  # (H, P)
    z: torch.Tensor | None,  # (B, L, H, P)
    dt_bias: torch.Tensor | None,  # (H,)
    seq_idx: torch.Tensor | None,  # (B, L)
    state: torch.Tensor,  # (B, H, P, N)
    softplus: bool,
    low: float,
    high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loop over time in the state's dtype; returns y (B, L, H, P) and the last state."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (F.softplus(dt) if softplus else dt).clamp(low, high)
    B, C = (m.repeat_interleave(x.shape[2] // m.shape[2], dim=2) for m in (B, C))  # (B, L, H, N)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)
        if seq_idx is not None and t:
            decay = decay * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None]
        entry = (dt[:, t, :, None] * x[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(-2)
        state = decay[..., None, None] * state + entry
        outputs.append((state * C[:, t].unsqueeze(-2)).sum(-1))
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)
    y = y if D is None else y + D * x
    return y if z is None else y * F.silu(z), state
