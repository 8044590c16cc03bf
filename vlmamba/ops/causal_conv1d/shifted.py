# SPDX-License-Identifier: Apache-2.0
"""The causal convolution in plain PyTorch: one fused multiply-add per tap over shifted, channel-last views.

Shapes: K directions, B batch, T steps, D channels, W taps.
"""

import torch
from torch.autograd.function import once_differentiable

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


class ShiftedConv(torch.autograd.Function):
    """(x, weight, bias, state) -> (y, last state); x and y (B, K, L, D), states (B, K, D, W - 1)."""

    @staticmethod
    def forward(ctx, x, weight, bias, state, rows, same):
        taps = weight.shape[-1]
        # (K, B, W - 1 + T, D)
        padded = torch.cat([state.permute(1, 0, 3, 2), in_order(x, rows)], dim=2)
        total = padded.shape[2] - taps + 1
        shape = (*padded.shape[:2], total, padded.shape[3])
        y = padded.new_zeros(shape)
        if bias is not None:
            y.add_(bias[:, None, None])
        for tap in range(taps):
            y.addcmul_(_shifted(padded, tap, total, same), weight[:, None, None, :, tap])
        last = padded[:, :, total:].permute(1, 0, 3, 2).contiguous()
        ctx.save_for_backward(padded, weight, rows, same)
        ctx.length, ctx.has_bias = x.shape[2], bias is not None
        return to_rows(y, rows, ctx.length), last

    @staticmethod
    @once_differentiable
    @in_full_precision
    def backward(ctx, dy, dlast):
        padded, weight, rows, same = ctx.saved_tensors
        taps = weight.shape[-1]
        dy = in_order(dy, rows).contiguous()
        total = dy.shape[2]
        dpadded = torch.zeros_like(padded)
        dpadded[:, :, total:] = dlast.permute(1, 0, 3, 2)
        dweight = torch.empty_like(weight)
        product = torch.empty_like(dy)
        for tap in range(taps):
            torch.mul(dy, _shifted(padded, tap, total, same), out=product)
            dweight[..., tap] = _sum(product)
            torch.mul(dy, weight[:, None, None, :, tap], out=product)
            if same is not None:
                product.mul_(same[tap])
            dpadded[:, :, tap : tap + total].add_(product)
        dbias = _sum(dy) if ctx.has_bias else None
        dx = to_rows(dpadded[:, :, taps - 1 :], rows, ctx.length)
        return dx, dweight, dbias, dpadded[:, :, : taps - 1].permute(1, 0, 3, 2), None, None


def _shifted(padded: torch.Tensor, tap: int, total: int, same: torch.Tensor | None) -> torch.Tensor:
    view = padded[:, :, tap : tap + total]
    return view if same is None else view * same[tap]


def _sum(product: torch.Tensor) -> torch.Tensor:
    """(K, B, T, D) -> (K, D), as a matrix product: several times faster than a reduction over outer dimensions."""
    rows = product.flatten(1, 2)
    return torch.matmul(rows.new_ones(1, rows.shape[1]), rows).squeeze(1)


def same_sequence(seq_idx: torch.Tensor, rows: torch.Tensor | None, taps: int, like: torch.Tensor) -> torch.Tensor:
    """(W, K, B, T, 1): 1 where a tap reads its own packed sequence, else 0; the state continues the first."""
    along = seq_idx[None].expand(like.shape[1], -1, -1) if rows is None else seq_idx[:, rows].transpose(0, 1)
    total = along.shape[-1]
    if total == 0:
        return like.new_ones(taps, *along.shape, 1)
    source = torch.cat([along[..., :1].expand(*along.shape[:-1], taps - 1), along], dim=-1)
    masks = [source[..., tap : tap + total] == along for tap in range(taps)]
    return torch.stack(masks).unsqueeze(-1).to(like.dtype)


def causal_conv1d_shifted(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    paths: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments and results as `causal_conv1d_reference`."""
    rows = None if paths is None else paths.long()
    same = None if seq_idx is None else same_sequence(seq_idx, rows, weight.shape[-1], x)
    return ShiftedConv.apply(x, weight, bias, state.to(x.dtype), rows, same)
