# SPDX-License-Identifier: Apache-2.0
"""The plain reference: the scan as mamba_ssm's `selective_scan_ref` goes about it, in our words.

exp(dt A) and dt B x are built for the whole sequence, `[..., D, L, N]`, then a Python loop runs over time. All
directions go through one loop, as VMamba does it. (mamba_ssm itself needs a GPU to install.)
"""

import torch
import torch.nn.functional as F


def scan(x, dt, A, B, C, D, dt_bias) -> torch.Tensor:
    """Channels first: x, dt `[B, K, D, L]`, B, C `[B, K, N, L]` -> `[B, K, D, L]`."""
    dt = F.softplus(dt + dt_bias.unsqueeze(-1))
    decay = torch.exp(torch.einsum("bkdl,kdn->bkdln", dt, A))
    inputs = torch.einsum("bkdl,bknl,bkdl->bkdln", dt, B, x)
    state = decay.new_zeros(*x.shape[:3], A.shape[-1])
    y = []
    for t in range(x.shape[-1]):
        state = decay[:, :, :, t] * state + inputs[:, :, :, t]
        y.append(torch.einsum("bkdn,bkn->bkd", state, C[..., t]))
    return torch.stack(y, dim=-1) + D.unsqueeze(-1) * x
