# SPDX-License-Identifier: Apache-2.0
r"""The definition of the selective scan (Mamba, Gu & Dao 2023, arXiv:2312.00752, section 3).

For every batch b, direction k and channel d, with rows r = path[k, t] and a state of N numbers:

    dt_t = softplus(dt[r] + dt_bias)                                    (softplus optional)
    h_t  = exp(dt_t * A) * h_{t-1} + dt_t * B[r] * x[r]                 (zero-order hold in A, Euler in B)
    y[r] = <C[r], h_t> + D * x[r]

A complex A (S4D) stands for conjugate pairs: y = 2 Re <C, h>.
A padded step (row -1) has x = B = C = 0 and dt = 0 before the bias. Where `seq_idx` changes along the
path, another packed sequence begins and h_{t-1} is zero.
"""

import torch
import torch.nn.functional as F


def selective_scan_reference(
    x: torch.Tensor,  # (B, K, L, D)
    dt: torch.Tensor,  # (B, K, L, D)
    A: torch.Tensor,  # (K, D, N)
    B: torch.Tensor,  # (B, K, L, N)
    C: torch.Tensor,  # (B, K, L, N)
    D: torch.Tensor | None,  # (K, D)
    dt_bias: torch.Tensor | None,  # (K, D)
    paths: torch.Tensor | None,  # (K, T)
    seq_idx: torch.Tensor | None,  # (B, L)
    state: torch.Tensor,  # (B, K, D, N)
    dt_softplus: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loop over time in the state's dtype; returns y (B, K, L, D), in scan rows, and the last state."""
    batch, num_paths, length, channels = x.shape
    if paths is None:
        paths = torch.arange(length, device=x.device).expand(num_paths, length)
    direction = torch.arange(num_paths, device=x.device)
    y = torch.zeros(batch, num_paths, length, channels, dtype=x.dtype, device=x.device)
    previous = None
    for step in range(paths.shape[1]):
        row = paths[:, step]
        real = (row >= 0).to(x.dtype)[None, :, None]
        row = row.clamp(min=0).long()
        x_t, B_t, C_t, dt_t = (v[:, direction, row] * real for v in (x, B, C, dt))
        if dt_bias is not None:
            dt_t = dt_t + dt_bias
        if dt_softplus:
            dt_t = F.softplus(dt_t)
        decay = torch.exp(dt_t[..., None] * A)  # (B, K, D, N)
        if seq_idx is not None:
            current = seq_idx[:, row]
            if previous is not None:
                decay = decay * (current == previous)[..., None, None]
            previous = current
        state = decay * state + (dt_t * x_t)[..., None] * B_t[..., None, :]
        y_t = (state * C_t[..., None, :]).sum(-1)
        y_t = 2 * y_t.real if y_t.is_complex() else y_t
        if D is not None:
            y_t = y_t + D * x_t
        # accumulate: a path may visit a row twice
        y = y.index_put((slice_all(batch, row), direction[None], row[None]), y_t * real, accumulate=True)
    return y, state


def slice_all(batch: int, row: torch.Tensor) -> torch.Tensor:
    """Batch indices (B, 1) that broadcast against per-direction rows."""
    return torch.arange(batch, device=row.device)[:, None]
