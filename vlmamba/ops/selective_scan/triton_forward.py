# SPDX-License-Identifier: Apache-2.0
"""Forward kernels of the selective scan; `triton.py` starts them, `triton_kernels.py` holds what all share."""

import triton
import triton.language as tl

from vlmamba.ops.selective_scan.triton_kernels import (
    continues,
    decays,
    load_plane,
    load_row,
    program_place,
    step_size,
    sum_states,
    visited_row,
)
from vlmamba.ops.triton.elementwise import sigmoid


@triton.jit(do_not_specialize=["one"])
def scan_fwd_kernel(
    x, dt, A, B, C, D, z, bias, paths, seq, starts, out, y, last, states,
    one, channels, directions, length, steps, span, spans,
    x_b, x_k, dt_b, dt_k, B_b, B_k, C_b, C_k, z_b, out_b, out_k,
    x_r: tl.constexpr, dt_r: tl.constexpr, B_r: tl.constexpr, C_r: tl.constexpr, z_r: tl.constexpr, out_r: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, AHEAD: tl.constexpr, MASKED: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PATHS: tl.constexpr,
    PADDED: tl.constexpr, HAS_SEQ: tl.constexpr, HAS_STARTS: tl.constexpr, KEEP: tl.constexpr,
    KEEP_Y: tl.constexpr, STEPPED: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Scan `span` steps from `starts` (b, k, s, N, D).

    Leaves the result at the rows visited, or in step order where STEPPED; in `last` (b, k, N, D) the state after the
    last step and, where KEEP, in `states` the state before every 64th. `out` has a plane for every direction and tile.
    """
    b, k, s, tile, block = program_place(tl.program_id(0), channels, directions, spans, N, BN, BD)
    tiles: tl.constexpr = (N + BN - 1) // BN
    d = block * BD + tl.arange(0, BD)
    n = tile * BN + tl.arange(0, BN)
    in_d = d < channels
    in_n = n < N
    in_nd = in_n[:, None] & in_d[None, :]
    nd = n[:, None] * channels + d[None, :] * one
    plane = (b * directions + k) * N * channels

    x += b * x_b + k.to(tl.int64) * x_k + d
    dt += b * dt_b + k.to(tl.int64) * dt_k + d
    B += b * B_b + k.to(tl.int64) * B_k + n
    C += b * C_b + k.to(tl.int64) * C_k + n
    z += b * z_b + d
    out += b * out_b + (k * tiles + tile).to(tl.int64) * out_k + d
    y += b * out_b + d
    paths += k.to(tl.int64) * steps
    seq += b * length

    A = load_plane(A + k.to(tl.int64) * N * channels, nd, in_nd, MASKED)
    skip = tl.zeros([BD], tl.float32)
    if HAS_D:
        skip = tl.load(D + k * channels + d, mask=in_d, other=0.0)
        if tiles > 1:
            skip = tl.where(tile == 0, skip, 0.0)
    shift = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + k * channels + d, mask=in_d, other=0.0)
    h = tl.zeros([BN, BD], tl.float32)
    if HAS_STARTS:
        h = load_plane(starts + ((b * directions + k) * spans + s) * N * channels, nd, in_nd, MASKED)

    begin = s * span
    end = tl.minimum(begin + span, steps)
    stride = 64 if KEEP else span
    for first in range(begin, end, stride):
        stop = tl.minimum(first + stride, end)
        if KEEP:
            kept = states + ((b * directions + k) * tl.cdiv(steps, 64) + first // 64) * N * channels
            tl.store(kept + nd, h, mask=in_nd)
        whole = first + (stop - first) // AHEAD * AHEAD
        for t in range(first, whole, AHEAD):
            h = _steps(
                h, t, A, skip, shift, in_d, in_n, x, dt, B, C, z, paths, seq, out, y,
                x_r, dt_r, B_r, C_r, z_r, out_r,
                AHEAD, N % BN != 0, MASKED, HAS_D, HAS_Z, HAS_PATHS, PADDED, HAS_SEQ, KEEP_Y, STEPPED, SOFTPLUS, FAST,
            )  # fmt: skip
        for t in range(whole, stop):
            h = _steps(
                h, t, A, skip, shift, in_d, in_n, x, dt, B, C, z, paths, seq, out, y,
                x_r, dt_r, B_r, C_r, z_r, out_r,
                1, N % BN != 0, MASKED, HAS_D, HAS_Z, HAS_PATHS, PADDED, HAS_SEQ, KEEP_Y, STEPPED, SOFTPLUS, FAST,
            )  # fmt: skip
    if end == steps:
        tl.store(last + plane + nd, h, mask=in_nd)


@triton.jit
def _steps(
    h, t, A, skip, shift, in_d, in_n, x, dt, B, C, z, paths, seq, out, y,
    x_r: tl.constexpr, dt_r: tl.constexpr, B_r: tl.constexpr, C_r: tl.constexpr, z_r: tl.constexpr, out_r: tl.constexpr,
    COUNT: tl.constexpr, PART_N: tl.constexpr, MASKED: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_PATHS: tl.constexpr, PADDED: tl.constexpr, HAS_SEQ: tl.constexpr, KEEP_Y: tl.constexpr, STEPPED: tl.constexpr,
    SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """COUNT steps from t on: all rows are asked for before the first is used."""
    rows = ()
    loaded = ()
    for i in tl.static_range(COUNT):
        row = visited_row(paths, t + i, HAS_PATHS)
        rows = rows + (row,)
        x_t = load_row(x, row, x_r, in_d, MASKED, PADDED)
        dt_t = load_row(dt, row, dt_r, in_d, MASKED, PADDED)
        B_t = load_row(B, row, B_r, in_n, PART_N, PADDED)
        C_t = load_row(C, row, C_r, in_n, PART_N, PADDED)
        z_t = load_row(z, row, z_r, in_d, MASKED, PADDED) if HAS_Z else x_t
        loaded = loaded + ((x_t, dt_t, B_t, C_t, z_t),)
    for i in tl.static_range(COUNT):
        x_t, dt_t, B_t, C_t, z_t = loaded[i]
        delta = step_size(dt_t, shift, SOFTPLUS, FAST)
        if HAS_SEQ:
            h = tl.where(continues(seq, paths, t + i, HAS_PATHS), h, 0.0)
        h = decays(delta, A, FAST) * h + (delta * x_t)[None, :] * B_t[:, None]
        y_t = sum_states(h, C_t[:, None], NEIGHBOURS=True)
        if HAS_D:
            y_t += skip * x_t
        place = tl.cast(t + i if STEPPED else rows[i], tl.int64) * out_r
        written = in_d & (rows[i] >= 0) if PADDED else in_d
        if KEEP_Y:
            tl.store(y + place, y_t, mask=written)
        if HAS_Z:
            y_t *= z_t * sigmoid(z_t, FAST)
        tl.store(out + place, y_t, mask=written)
    return h


@triton.jit(do_not_specialize=["one"])
def scan_local_kernel(
    x, dt, A, B, bias, paths, seq, states, decay,
    one, channels, directions, length, steps, span, spans,
    x_b, x_k, dt_b, dt_k, B_b, B_k, x_r: tl.constexpr, dt_r: tl.constexpr, B_r: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, AHEAD: tl.constexpr, MASKED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_PATHS: tl.constexpr, PADDED: tl.constexpr, HAS_SEQ: tl.constexpr,
    BACKWARD: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """What `span` steps make of a zero state (`states`), and how much of another they keep (`decay`), (b, k, s, N, D).

    BACKWARD runs the same sums for the gradient of the state, from the last step to the first, with dy and C in place
    of x and B: what the steps add to the gradient of the state before them.
    """
    b, k, s, tile, block = program_place(tl.program_id(0), channels, directions, spans, N, BN, BD)
    d = block * BD + tl.arange(0, BD)
    n = tile * BN + tl.arange(0, BN)
    in_d = d < channels
    in_n = n < N
    in_nd = in_n[:, None] & in_d[None, :]
    nd = n[:, None] * channels + d[None, :] * one

    x += b * x_b + k.to(tl.int64) * x_k + d
    dt += b * dt_b + k.to(tl.int64) * dt_k + d
    B += b * B_b + k.to(tl.int64) * B_k + n
    paths += k.to(tl.int64) * steps
    seq += b * length

    A = load_plane(A + k.to(tl.int64) * N * channels, nd, in_nd, MASKED)
    shift = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + k * channels + d, mask=in_d, other=0.0)
    begin = s * span
    end = tl.minimum(begin + span, steps)
    h = tl.zeros([BN, BD], tl.float32)
    total = tl.zeros([BD], tl.float32)
    through = 1.0
    count = end - begin
    whole = count // AHEAD * AHEAD
    for done in range(0, whole, AHEAD):
        h, total, through = _local_steps(
            h, total, through, begin, end, done, A, shift, in_d, in_n, x, dt, B, paths, seq, x_r, dt_r, B_r,
            AHEAD, N % BN != 0, MASKED, HAS_PATHS, PADDED, HAS_SEQ, BACKWARD, SOFTPLUS, FAST,
        )  # fmt: skip
    for done in range(whole, count):
        h, total, through = _local_steps(
            h, total, through, begin, end, done, A, shift, in_d, in_n, x, dt, B, paths, seq, x_r, dt_r, B_r,
            1, N % BN != 0, MASKED, HAS_PATHS, PADDED, HAS_SEQ, BACKWARD, SOFTPLUS, FAST,
        )  # fmt: skip
    plane = ((b * directions + k) * spans + s) * N * channels
    tl.store(states + plane + nd, h, mask=in_nd)
    tl.store(decay + plane + nd, decays(total, A, FAST) * through, mask=in_nd)


@triton.jit
def _local_steps(
    h, total, through, begin, end, done, A, shift, in_d, in_n, x, dt, B, paths, seq,
    x_r: tl.constexpr, dt_r: tl.constexpr, B_r: tl.constexpr,
    COUNT: tl.constexpr, PART_N: tl.constexpr, MASKED: tl.constexpr, HAS_PATHS: tl.constexpr, PADDED: tl.constexpr,
    HAS_SEQ: tl.constexpr, BACKWARD: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    loaded = ()
    for i in tl.static_range(COUNT):
        t = end - 1 - done - i if BACKWARD else begin + done + i
        row = visited_row(paths, t, HAS_PATHS)
        x_t = load_row(x, row, x_r, in_d, MASKED, PADDED)
        dt_t = load_row(dt, row, dt_r, in_d, MASKED, PADDED)
        B_t = load_row(B, row, B_r, in_n, PART_N, PADDED)
        same = continues(seq, paths, t, HAS_PATHS) if HAS_SEQ else True
        loaded = loaded + ((x_t, dt_t, B_t, same),)
    for i in tl.static_range(COUNT):
        x_t, dt_t, B_t, same = loaded[i]
        delta = step_size(dt_t, shift, SOFTPLUS, FAST)
        total += delta
        decay = decays(delta, A, FAST)
        if HAS_SEQ:
            decay = tl.where(same, decay, 0.0)
            through = tl.where(same, through, 0.0)
        input_t = x_t if BACKWARD else delta * x_t
        added = input_t[None, :] * B_t[:, None]
        h = decay * (h + added) if BACKWARD else decay * h + added
    return h, total, through


@triton.jit
def combine_kernel(
    states, decay, initial, elements, spans,
    HAS_INITIAL: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns what spans add by themselves, (planes, spans, elements), into the state that enters each, in place.

    BACKWARD goes from the last span to the first: the gradient of the state that leaves each.
    """
    blocks = tl.cdiv(elements, BLOCK)
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    e = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = e < elements
    carry = tl.zeros([BLOCK], tl.float32)
    if HAS_INITIAL:
        carry = tl.load(initial + plane * elements + e, mask=inside, other=0.0)
    for i in range(spans):
        s = spans - 1 - i if BACKWARD else i
        here = (plane * spans + s) * elements + e
        added = tl.load(states + here, mask=inside, other=0.0)
        kept = tl.load(decay + here, mask=inside, other=0.0)
        tl.store(states + here, carry, mask=inside)
        carry = kept * carry + added
