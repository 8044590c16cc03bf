# SPDX-License-Identifier: Apache-2.0
r"""The definition of the short causal depthwise convolution.

With rows r_t = path[k, t] and W taps: y[r_t] += act(bias + sum_w weight[w] * x[r_{t - W + 1 + w}]), where steps
before the first read the initial state (zeros without one), oldest first.
"""

import torch
import torch.nn.functional as F


def causal_conv1d_reference(
    x: torch.Tensor,  # (B, K, L, D)
    weight: torch.Tensor,  # (K, D, W)
    bias: torch.Tensor | None,  # (K, D)
    paths: torch.Tensor | None,  # (K, T)
    seq_idx: torch.Tensor | None,  # (B, L)
    state: torch.Tensor,  # (B, K, D, W - 1)
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loop over steps and taps; returns y (B, K, L, D) and the last W - 1 inputs."""
    batch, num_paths, length, _ = x.shape
    if paths is None:
        paths = torch.arange(length, device=x.device).expand(num_paths, length)
    y = torch.zeros_like(x)
    direction = torch.arange(num_paths, device=x.device)
    items = torch.arange(batch, device=x.device)[:, None]
    window = list(state.unbind(-1))
    sequence = [None] * len(window)
    for step in range(paths.shape[1]):
        row = paths[:, step]
        real = (row >= 0).to(x.dtype)[None, :, None]
        row = row.clamp(min=0).long()
        current = None if seq_idx is None else seq_idx[:, row]
        window.append(x[:, direction, row] * real)
        sequence.append(current)
        total = torch.zeros_like(window[-1]) if bias is None else bias.expand_as(window[-1])
        for tap in range(weight.shape[-1]):
            term = window[step + tap] * weight[..., tap]
            if current is not None:
                # a packed sequence sees only itself; the state continues the first one
                source = sequence[step + tap] if sequence[step + tap] is not None else sequence[state.shape[-1]]
                term = term * (source == current)[..., None]
            total = total + term
        total = (F.silu(total) if silu else total) * real
        y = y.index_put((items, direction[None], row[None]), total, accumulate=True)
    last = window[len(window) - state.shape[-1] :]
    return y, torch.stack(last, dim=-1) if last else state
