# SPDX-License-Identifier: Apache-2.0
"""The causal convolution in plain PyTorch: one fused multiply-add per tap over shifted, channel-last views.

The formula stands in `reference.py`, the operands in `register.py`.
Shapes: K directions, B batch, T steps, D channels, W taps.
"""

import torch
import torch.nn.functional as F

from vlmamba.ops.numerics import in_full_precision


def in_order(tensor: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """(B, K, L, D) -> (K, B, T, D): what each direction reads, 0 at padded steps."""
    tensor = tensor.transpose(0, 1)
    if rows is None:
        return tensor
    taken = [one.index_select(1, row.clamp(min=0)) for one, row in zip(tensor, rows, strict=True)]
    return torch.stack(taken).mul_((rows >= 0)[:, None, :, None])


def to_rows(stepped: torch.Tensor, rows: torch.Tensor | None, length: int) -> torch.Tensor:
    """(K, B, T, D) -> (B, K, L, D): every step's value added to the row it visited."""
    if rows is None:
        return stepped.transpose(0, 1)
    directions, batch, _, channels = stepped.shape
    out = stepped.new_zeros(directions, batch, length + 1, channels)  # the last row takes padded steps
    for one, row, value in zip(out, rows, stepped, strict=True):
        one.index_add_(1, row.remainder(length + 1), value)
    return out[:, :, :length].transpose(0, 1)


class Windows:
    """The inputs of one call in step order, after those before the first: `padded` (K, B, W - 1 + T, D)."""

    def __init__(self, x, weight, bias, paths, seq_idx, state):
        self.weight, self.bias, self.taps = weight, bias, weight.shape[-1]
        self.rows = None if paths is None else paths.long()
        x = in_order(x.expand(-1, weight.shape[0], -1, -1), self.rows).to(weight.dtype)
        before = x.new_zeros(*x.shape[:2], self.taps - 1, x.shape[-1])
        before = before if state is None else state.permute(1, 0, 3, 2).to(x.dtype)
        self.padded = torch.cat([before, x], dim=2)
        self.total = x.shape[2]
        self.same = None if seq_idx is None else self._same_sequence(seq_idx)

    def _same_sequence(self, seq_idx: torch.Tensor) -> list[torch.Tensor]:
        """For every tap (K, B, T, 1): 1 where it reads its own packed sequence, else 0; the state is of the first."""
        directions = self.weight.shape[0]
        along = seq_idx[None].expand(directions, -1, -1)
        along = along if self.rows is None else seq_idx[:, self.rows].transpose(0, 1)
        source = torch.cat([along[..., :1].expand(*along.shape[:-1], self.taps - 1), along], dim=-1)
        reads = (source[..., tap : tap + self.total] == along for tap in range(self.taps))
        return [one.unsqueeze(-1).to(self.padded.dtype) for one in reads]

    def shifted(self, tap: int) -> torch.Tensor:
        view = self.padded[:, :, tap : tap + self.total]
        return view if self.same is None else view * self.same[tap]

    def sums(self) -> torch.Tensor:
        """(K, B, T, D), before the activation."""
        y = self.padded.new_zeros(*self.padded.shape[:2], self.total, self.padded.shape[3])
        if self.bias is not None:
            y.add_(self.bias[:, None, None])
        for tap in range(self.taps):
            y.addcmul_(self.shifted(tap), self.weight[:, None, None, :, tap])
        return y


@in_full_precision
def forward(x, weight, bias, paths, seq_idx, state, silu):
    """See `register.py`."""
    windows = Windows(x, weight, bias, paths, seq_idx, state)
    y = windows.sums()
    y = to_rows(F.silu(y, inplace=True) if silu else y, windows.rows, x.shape[2])
    last = windows.padded[:, :, windows.total :].permute(1, 0, 3, 2)
    return y.to(x.dtype).contiguous(), last.to(x.dtype).contiguous()


@in_full_precision
def backward(dy, dlast, x, weight, bias, paths, seq_idx, state, silu):
    """See `register.py`."""
    windows = Windows(x, weight, bias, paths, seq_idx, state)
    dy = in_order(dy.to(weight.dtype), windows.rows)
    if silu:
        y = windows.sums()
        slope = torch.sigmoid(y)
        dy = dy * slope * (1 + y * (1 - slope))
    total, taps = windows.total, windows.taps
    dpadded = torch.zeros_like(windows.padded)
    if dlast is not None:
        dpadded[:, :, total:] = dlast.permute(1, 0, 3, 2)
    dweight = torch.empty_like(weight)
    for tap in range(taps):
        dweight[..., tap] = _sum(dy * windows.shifted(tap))
        product = dy * weight[:, None, None, :, tap]
        dpadded[:, :, tap : tap + total] += product if windows.same is None else product.mul_(windows.same[tap])
    dx = to_rows(dpadded[:, :, taps - 1 :], windows.rows, x.shape[2])
    dx = dx.sum(1, keepdim=True) if x.shape[1] != dx.shape[1] else dx
    dstate = dpadded[:, :, : taps - 1].permute(1, 0, 3, 2).contiguous()
    return dx.to(x.dtype).contiguous(), dweight, None if bias is None else _sum(dy), dstate


def _sum(product: torch.Tensor) -> torch.Tensor:
    """(K, B, T, D) -> (K, D), as a matrix product: several times faster than a reduction over outer dimensions."""
    rows = product.flatten(1, 2)
    return torch.matmul(rows.new_ones(1, rows.shape[1]), rows).squeeze(1)


def update(x, state, weight, bias, silu):
    """One step, differentiable: x (B, D), state (B, D, W - 1), weight (D, W), bias (D) -> y and the new state."""
    window = torch.cat([state, x.unsqueeze(-1)], dim=-1)
    y = (window * weight).sum(-1)
    y = y if bias is None else y + bias
    return F.silu(y) if silu else y, window[..., 1:]
