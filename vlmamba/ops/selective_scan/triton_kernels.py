# SPDX-License-Identifier: Apache-2.0
"""What the forward and the backward kernels of the selective scan share.

A program owns BD channels and BN states ([BN, BD] numbers in registers, lanes along the channels) of one sequence, one
direction and `span` steps. Programs are numbered channel blocks first, so that neighbours read the same rows of B and C.
Letters: b batch, k direction, s span, tile of BN states; d and n offsets of channels and states.
"""

import triton
import triton.language as tl

from vlmamba.ops.triton.elementwise import exp2, softplus


@triton.jit
def program_place(item, channels, directions, spans, N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):
    """Number of a piece of work -> (b, k, s, tile, channel block)."""
    blocks = tl.cdiv(channels, BD)
    tiles: tl.constexpr = (N + BN - 1) // BN
    block = item % blocks
    item = item // blocks
    tile = item % tiles
    item = item // tiles
    s = item % spans
    item = item // spans
    return (item // directions).to(tl.int64), item % directions, s, tile, block


@triton.jit
def visited_row(paths, t, HAS_PATHS: tl.constexpr):
    """Row of step t, where `paths` points to the direction's part of the table; below 0 for padded steps."""
    if HAS_PATHS:
        return tl.load(paths + t)
    else:
        return t


@triton.jit
def load_row(pointer, row, stride, mask, MASKED: tl.constexpr, PADDED: tl.constexpr):
    """One row as float32; zeros at padded steps and outside the mask."""
    here = pointer + tl.cast(tl.maximum(row, 0) if PADDED else row, tl.int64) * stride
    if PADDED:
        return tl.load(here, mask=mask & (row >= 0), other=0.0).to(tl.float32)
    elif MASKED:
        return tl.load(here, mask=mask, other=0.0).to(tl.float32)
    else:
        return tl.load(here).to(tl.float32)


@triton.jit
def step_size(raw, bias, SOFTPLUS: tl.constexpr, FAST: tl.constexpr):
    if SOFTPLUS:
        return softplus(raw + bias, FAST)
    else:
        return raw + bias


@triton.jit
def decays(delta, A, FAST: tl.constexpr):
    """exp(dt A) as [BN, BD]; A holds log2(e) A."""
    return exp2(delta[None, :] * A, FAST)


@triton.jit
def load_plane(pointer, nd, mask, MASKED: tl.constexpr):
    """A [BN, BD] block of an (N, D) plane."""
    if MASKED:
        return tl.load(pointer + nd, mask=mask, other=0.0)
    else:
        return tl.load(pointer + nd)
