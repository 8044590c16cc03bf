# SPDX-License-Identifier: Apache-2.0
"""The gate, and sums of what kernels leave by direction, tile or step: in a fixed order, the same in every run."""

import torch
import triton
import triton.language as tl

from vlmamba.ops.triton import launcher
from vlmamba.ops.triton.elementwise import sigmoid
from vlmamba.ops.triton.launcher import blocks, given, power_of_two, row_strides, strides

Tensor = torch.Tensor


@triton.jit
def merge_kernel(
    parts, z, out, y, length, channels, planes, groups, z_b, z_r: tl.constexpr,
    HAS_Z: tl.constexpr, KEEP_Y: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """out (B, groups, L, D) = sums over the planes of each group of `parts` (B, groups * planes, L, D), gated."""
    pid = tl.program_id(0)
    column_blocks = tl.cdiv(channels, BD)
    row_blocks = tl.cdiv(length, BL)
    d = (pid % column_blocks) * BD + tl.arange(0, BD)
    pid = pid // column_blocks
    row = (pid % row_blocks) * BL + tl.arange(0, BL)
    group = (pid // row_blocks).to(tl.int64)
    inside = (row < length)[:, None] & (d < channels)[None, :]
    offsets = row[:, None].to(tl.int64) * channels + d[None, :]
    plane = tl.cast(length, tl.int64) * channels
    total = tl.zeros([BL, BD], tl.float32)
    for i in range(planes):
        total += tl.load(parts + (group * planes + i) * plane + offsets, mask=inside, other=0.0)
    here = group * plane + offsets
    if KEEP_Y:
        tl.store(y + here, total, mask=inside)
    if HAS_Z:
        b = group // groups
        gate = tl.load(z + b * z_b + row[:, None].to(tl.int64) * z_r + d[None, :], mask=inside, other=0.0)
        gate = gate.to(tl.float32)
        total *= gate * sigmoid(gate, FAST)
    tl.store(out + here, total, mask=inside)


def to_rows(stepped: Tensor, paths: Tensor, length: int) -> Tensor:
    """(B, K * tiles, T, X) -> (B, K * tiles, L, X): every step's value added to its row, in the order of the steps."""
    tiles = stepped.shape[1] // paths.shape[0]
    rows = paths.long().remainder(length + 1)  # the last row takes padded steps
    out = stepped.new_zeros(stepped.shape[1], length + 1, stepped.shape[0], stepped.shape[3])
    for plane in range(stepped.shape[1]):
        # unlike index_add_, deterministic on every device
        out[plane].index_put_((rows[plane // tiles],), stepped[:, plane].transpose(0, 1), accumulate=True)
    return out[:, :length].permute(2, 0, 1, 3).contiguous()


def merged(parts: Tensor, groups: int, z: Tensor | None, dtype: torch.dtype, keep_y: bool):
    """(B, P, L, D) -> sums (B, groups, L, D) times silu(z), and before the gate if asked for."""
    batch, planes, length, channels = parts.shape
    out = parts.new_empty(batch, groups, length, channels, dtype=dtype)
    y = parts.new_empty(out.shape) if keep_y else None
    BD = min(128, power_of_two(channels))
    BL = 1024 // BD
    launcher.launch(
        merge_kernel, batch * groups * blocks(length, BL) * blocks(channels, BD), parts, *given((z,), parts), out,
        *given((y,), parts), length, channels, planes // groups, groups, *strides(z)[:1],
        **row_strides(z=z), HAS_Z=z is not None, KEEP_Y=keep_y, BL=BL, BD=BD, FAST=launcher.fast(), num_warps=4,
    )  # fmt: skip
    return out, y


@triton.jit
def gate_bwd_kernel(
    dout, z, y, dy, dz, length, channels, dout_b, z_b, dout_r: tl.constexpr, z_r: tl.constexpr,
    BL: tl.constexpr, BD: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Gradients of y (float32) and z, of y * silu(z): (B, 1, L, D)."""
    column_blocks = tl.cdiv(channels, BD)
    row_blocks = tl.cdiv(length, BL)
    pid = tl.program_id(0)
    d = (pid % column_blocks) * BD + tl.arange(0, BD)
    pid = pid // column_blocks
    row = (pid % row_blocks) * BL + tl.arange(0, BL)
    b = (pid // row_blocks).to(tl.int64)
    inside = (row < length)[:, None] & (d < channels)[None, :]
    wide = row[:, None].to(tl.int64)
    here = (b * length + wide) * channels + d[None, :]
    gradient = tl.load(dout + b * dout_b + wide * dout_r + d[None, :], mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(z + b * z_b + wide * z_r + d[None, :], mask=inside, other=0.0).to(tl.float32)
    slope = sigmoid(gate, FAST)
    tl.store(dy + here, gradient * gate * slope, mask=inside)
    slope += gate * slope * (1 - slope)
    tl.store(dz + here, gradient * slope * tl.load(y + here, mask=inside, other=0.0), mask=inside)


def ungated(dout: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y and z, of y * silu(z): (B, 1, L, D)."""
    dout, z = launcher.rows(dout), launcher.rows(z)
    dy, dz = torch.empty_like(y), z.new_empty(z.shape)
    batch, _, length, channels = y.shape
    BD = min(128, power_of_two(channels))
    BL = 1024 // BD
    launcher.launch(
        gate_bwd_kernel, batch * blocks(length, BL) * blocks(channels, BD), dout, z, y, dy, dz, length, channels,
        dout.stride(0), z.stride(0), **row_strides(dout=dout, z=z), BL=BL, BD=BD, FAST=launcher.fast(), num_warps=4,
    )  # fmt: skip
    return dy, dz
