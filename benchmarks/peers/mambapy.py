# SPDX-License-Identifier: Apache-2.0
"""mambapy's parallel scan (Blelloch's, in PyTorch) as its Mamba block calls it; the directions join the batch."""

from importlib import util

import torch
import torch.nn.functional as F


def reason() -> str:
    """Why it cannot take part; empty when it can."""
    return "" if util.find_spec("mambapy") else "mambapy is not installed"


def scan(x, dt, A, B, C, D, dt_bias) -> torch.Tensor:
    """Channels last: x, dt `[B, K, L, D]`, B, C `[B, K, L, N]` -> `[B, K, L, D]`."""
    from mambapy.pscan import pscan

    dt = F.softplus(dt + dt_bias.unsqueeze(1)).unsqueeze(-1)
    decay = torch.exp(dt * A.unsqueeze(1))
    inputs = dt * B.unsqueeze(-2) * x.unsqueeze(-1)
    states = pscan(decay.flatten(0, 1), inputs.flatten(0, 1)).unflatten(0, x.shape[:2])
    return (states @ C.unsqueeze(-1)).squeeze(-1) + D.unsqueeze(1) * x
