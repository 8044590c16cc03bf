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
def dot_states(h, C):
    """Sums of h [BN, BD] times C [BN] over the states; in pieces, so that most terms are multiply-adds."""
    if h.shape[0] < 4:
        return tl.sum(h * C[:, None], axis=0)
    else:
        h0, h1 = _halves(h)
        C0, C1 = tl.split(tl.reshape(C, [C.shape[0] // 2, 2]))
        if h0.shape[0] < 4:
            return tl.sum(h0 * C0[:, None] + h1 * C1[:, None], axis=0)
        else:
            h00, h01 = _halves(h0)
            h10, h11 = _halves(h1)
            C00, C01 = tl.split(tl.reshape(C0, [C0.shape[0] // 2, 2]))
            C10, C11 = tl.split(tl.reshape(C1, [C1.shape[0] // 2, 2]))
            total = h00 * C00[:, None] + h01 * C01[:, None]
            total = total + h10 * C10[:, None]
            total = total + h11 * C11[:, None]
            return tl.sum(total, axis=0)


@triton.jit
def _halves(h):
    """Even and odd rows of [BN, BD]."""
    return tl.split(tl.permute(tl.reshape(h, [h.shape[0] // 2, 2, h.shape[1]]), [0, 2, 1]))
