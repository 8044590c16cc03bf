# SPDX-License-Identifier: Apache-2.0
"""The causal convolution in plain PyTorch: one fused multiply-add per tap over shifted, channel-last views."""

import torch


def causal_conv1d_shifted(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    paths: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments and results as `causal_conv1d_reference`."""
    _, num_paths, length, _ = x.shape
    taps = weight.shape[-1]
    rows = None if paths is None else paths.long()
    ordered = x if rows is None else _in_order(x, rows)
    total = ordered.shape[2]
    padded = torch.cat([state.transpose(-1, -2).to(ordered.dtype), ordered], dim=2)  # (B, K, W - 1 + T, D)
    along = None
    if seq_idx is not None:
        along = seq_idx[:, None].expand(-1, num_paths, -1) if rows is None else seq_idx[:, rows]
    y = None
    for tap in range(taps):
        view = padded[:, :, tap : tap + total]
        if along is not None:
            view = view * _same_sequence(along, taps - 1 - tap).unsqueeze(-1)
        term = weight[:, None, :, tap]  # (K, 1, D)
        if y is None:
            y = view * term if bias is None else torch.addcmul(bias[:, None], view, term)
        else:
            y = torch.addcmul(y, view, term)
    last = padded[:, :, padded.shape[2] - (taps - 1) :].transpose(-1, -2)
    return (y if rows is None else _to_rows(y, rows, length)), last


def _in_order(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(B, K, L, D) -> (B, K, T, D): what each direction reads, 0 at padded steps."""
    direction = torch.arange(rows.shape[0], device=rows.device)[:, None]
    return x[:, direction, rows.clamp(min=0)] * (rows >= 0).unsqueeze(-1)


def _to_rows(y: torch.Tensor, rows: torch.Tensor, length: int) -> torch.Tensor:
    """(B, K, T, D) -> (B, K, L, D): every step's value added to the row it visited."""
    out = y.new_zeros(*y.shape[:2], length + 1, y.shape[-1])  # the last row takes padded steps
    index = rows.remainder(length + 1)[None, :, :, None].expand_as(y)
    return out.scatter_add(2, index, y)[:, :, :length]


def _same_sequence(along: torch.Tensor, shift: int) -> torch.Tensor:
    """(B, K, T): whether the step `shift` before is of the same packed sequence; the state continues the first."""
    source = torch.cat([along[..., :1].expand(*along.shape[:-1], shift), along], dim=-1)[..., : along.shape[-1]]
    return source == along
