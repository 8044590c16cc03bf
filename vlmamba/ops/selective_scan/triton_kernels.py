# SPDX-License-Identifier: Apache-2.0
"""What the forward and the backward kernels of the selective scan share.

A program owns BD channels and BN states ([BN, BD] numbers in registers, lanes along the channels) of one sequence, one
direction and `span` steps. Work is numbered channel blocks first, so that neighbours read the same rows of B and C.
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
def continues(seq, paths, t, HAS_PATHS: tl.constexpr):
    """Whether step t belongs to the packed sequence of the step before it."""
    here = tl.load(seq + visited_row(paths, t, HAS_PATHS))
    return here == tl.load(seq + visited_row(paths, tl.maximum(t - 1, 0), HAS_PATHS))


@triton.jit
def load_row(pointer, row, stride: tl.constexpr, mask, MASKED: tl.constexpr, PADDED: tl.constexpr):
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


@triton.jit
def sum_states(a, b, NEIGHBOURS: tl.constexpr):
    """Sums over the states of a [BN, BD] times b ([BN, BD] or [BN, 1]).

    In quarters, so that their terms are multiply-adds; made of neighbours where one thread has all states, of distant
    ones where lanes lie along states as well.
    """
    if a.shape[0] < 4:
        return tl.sum(a * b, axis=0)
    else:
        a0, a1 = _halves(a, NEIGHBOURS)
        b0, b1 = _halves(b, NEIGHBOURS)
        a00, a01 = _halves(a0, NEIGHBOURS)
        a10, a11 = _halves(a1, NEIGHBOURS)
        b00, b01 = _halves(b0, NEIGHBOURS)
        b10, b11 = _halves(b1, NEIGHBOURS)
        total = a00 * b00 + a01 * b01
        total = total + a10 * b10
        total = total + a11 * b11
        return tl.sum(total, axis=0)


@triton.jit
def _halves(a, NEIGHBOURS: tl.constexpr):
    """Even and odd rows of a matrix, or upper and lower ones."""
    if NEIGHBOURS:
        return tl.split(tl.permute(tl.reshape(a, [a.shape[0] // 2, 2, a.shape[1]]), [0, 2, 1]))
    else:
        return tl.split(tl.permute(tl.reshape(a, [2, a.shape[0] // 2, a.shape[1]]), [1, 2, 0]))


@triton.jit
def sum_channels(a, b):
    """Sums over the channels of a [BN, BD] times b [1, BD]; where a thread has four neighbours, in quarters."""
    if a.shape[0] * a.shape[1] < 256:
        return tl.sum(a * b, axis=1)
    else:
        a0, a1 = _alternating(a)
        b0, b1 = _alternating(b)
        a00, a01 = _alternating(a0)
        a10, a11 = _alternating(a1)
        b00, b01 = _alternating(b0)
        b10, b11 = _alternating(b1)
        total = a00 * b00 + a01 * b01
        total = total + a10 * b10
        total = total + a11 * b11
        return tl.sum(total, axis=1)


@triton.jit
def _alternating(a):
    """Even and odd columns of a matrix."""
    return tl.split(tl.reshape(a, [a.shape[0], a.shape[1] // 2, 2]))
