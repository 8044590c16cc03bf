# SPDX-License-Identifier: Apache-2.0
"""Backward kernels of the selective scan; `triton.py` starts them, `triton_kernels.py` holds what all share."""

import triton
import triton.language as tl

from vlmamba.ops.selective_scan.triton_kernels import (
    continues,
    decays,
    load_plane,
    load_row,
    program_place,
    sum_channels,
    sum_states,
    visited_row,
)
from vlmamba.ops.triton.elementwise import exp2, sigmoid, softplus

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["zero", "first_item"])
def scan_bwd_kernel(
    dy, x, dt, A, B, C, D, bias, paths, seq, states, leaving, scratch, dx, ddt, dA, dB, dC, dD, dbias, dstate,
    zero, channels, directions, length, steps, span, spans, first_item,
    dy_b, dy_k, x_b, x_k, dt_b, dt_k, B_b, B_k, C_b, C_k, dx_b, dx_k,
    dy_r: tl.constexpr, x_r: tl.constexpr, dt_r: tl.constexpr, B_r: tl.constexpr, C_r: tl.constexpr, dx_r: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PATHS: tl.constexpr, PADDED: tl.constexpr, HAS_SEQ: tl.constexpr,
    HAS_LEAVING: tl.constexpr, STEPPED: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """All gradients of `span` steps, from `leaving` (b, k, s, N, D), the gradient of the state after them.

    Intervals of 64 steps go from last to first. The first pass runs an interval forward from its kept state and leaves
    in `scratch`, the program's own, the state before every U-th step and each step's size and its slope. The second
    goes back over it, U steps at once. In the first, which sums nothing over channels, lanes lie along channels:
    [BD, BN] at addresses that seem unaligned (`zero`). In the second, [BN, BD], they lie along states as well: two of
    its sums go over channels, two over states.

    dx, ddt: by direction and tile, at the rows visited or in step order (STEPPED). dB, dC: (b, k, channel block, row,
    N). dA: (b, k, s, N, D). dD, dbias: (b, k, s, tile, D). dstate: (b, k, N, D), from the first span.
    """
    b, k, s, tile, block = program_place(first_item + tl.program_id(0), channels, directions, spans, N, BN, BD)
    tiles: tl.constexpr = (N + BN - 1) // BN
    d = block * BD + tl.arange(0, BD)
    n = tile * BN + tl.arange(0, BN)
    in_d = d < channels
    in_n = n < N
    in_nd = in_n[:, None] & in_d[None, :]
    in_dn = in_d[:, None] & in_n[None, :]
    dn = n[None, :] * channels + d[:, None]
    nd = n[:, None] * channels + d[None, :]
    wide = k.to(tl.int64)
    bk = b * directions + k
    elements = N * channels

    dy += b * dy_b + wide * dy_k + d
    x += b * x_b + wide * x_k + d
    dt += b * dt_b + wide * dt_k + d
    B += b * B_b + wide * B_k + n
    C += b * C_b + wide * C_k + n
    target = b * dx_b + (wide * tiles + tile) * dx_k + d
    dx += target
    ddt += target
    paths += wide * steps
    seq += b * length
    results = steps if STEPPED else length
    row_sums = (bk * tl.cdiv(channels, BD) + block) * results * N + n
    dB += row_sums
    dC += row_sums
    states += bk * tl.cdiv(steps, 64) * elements

    groups: tl.constexpr = 64 // U
    scratch += tl.program_id(0).to(tl.int64) * (groups * BN * BD + 2 * 64 * BD)
    sizes = scratch + groups * BN * BD + tl.arange(0, BD)
    slopes = sizes + 64 * BD
    kept_along = tl.arange(0, BN)[None, :] * BD + tl.arange(0, BD)[:, None]
    kept = tl.arange(0, BN)[:, None] * BD + tl.arange(0, BD)[None, :]

    A_along = load_plane(A + wide * elements + zero, dn, in_dn, MASKED)
    A_nd = load_plane(A + wide * elements, nd, in_nd, MASKED)
    skip = tl.zeros([BD], tl.float32)
    if HAS_D:
        skip = tl.load(D + k * channels + d, mask=in_d, other=0.0)
        if tiles > 1:
            skip = tl.where(tile == 0, skip, 0.0)
    shift = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + k * channels + d, mask=in_d, other=0.0)
    g = tl.zeros([BN, BD], tl.float32)
    if HAS_LEAVING:
        g = load_plane(leaving + (bk * spans + s) * elements, nd, in_nd, MASKED)
    sum_A = tl.zeros([BN, BD], tl.float32)
    sum_D = tl.zeros([BD], tl.float32)
    sum_bias = tl.zeros([BD], tl.float32)

    begin = s * span
    end = tl.minimum(begin + span, steps)
    intervals = tl.cdiv(end - begin, 64)
    for back in range(intervals):
        first = begin + (intervals - 1 - back) * 64
        count = tl.cdiv(tl.minimum(64, end - first), U)
        along = load_plane(states + (first // 64) * elements + zero, dn, in_dn, MASKED)
        for j in range(count):
            tl.store(scratch + j * BN * BD + zero + kept_along, along)
            along, sum_D = _sizes_and_states(
                along, sum_D, first + j * U, end, A_along, shift, in_d, in_n, dy, x, dt, B, paths, seq,
                sizes + j * U * BD, slopes + j * U * BD, dy_r, x_r, dt_r, B_r,
                BD, U, N % BN != 0, MASKED, TAIL, HAS_D, HAS_PATHS, PADDED, HAS_SEQ, SOFTPLUS, FAST,
            )  # fmt: skip
        # what the first pass wrote, other lanes read
        tl.debug_barrier()
        for i in range(count):
            j = count - 1 - i
            h = tl.load(scratch + j * BN * BD + kept)
            g, sum_A, sum_bias = _back(
                h, g, sum_A, sum_bias, first + j * U, end, A_nd, skip, in_d, in_n, dy, x, B, C, paths, seq,
                sizes + j * U * BD, slopes + j * U * BD, dx, ddt, dB, dC, dy_r, x_r, B_r, C_r, dx_r,
                N, BD, U, N % BN != 0, MASKED, TAIL, HAS_D, HAS_PATHS, PADDED, HAS_SEQ, STEPPED, FAST,
            )  # fmt: skip
        tl.debug_barrier()

    tl.store(dA + (bk * spans + s) * elements + nd, sum_A, mask=in_nd)
    if begin == 0:
        tl.store(dstate + bk * elements + nd, g, mask=in_nd)
    vectors = ((bk * spans + s) * tiles + tile) * channels + d
    if HAS_D:
        tl.store(dD + vectors, sum_D if tiles == 1 else tl.where(tile == 0, sum_D, 0.0), mask=in_d)
    if HAS_BIAS:
        tl.store(dbias + vectors, sum_bias, mask=in_d)


@triton.jit
def _sizes_and_states(
    h, sum_D, t, end, A, shift, in_d, in_n, dy, x, dt, B, paths, seq, sizes, slopes,
    dy_r: tl.constexpr, x_r: tl.constexpr, dt_r: tl.constexpr, B_r: tl.constexpr, BD: tl.constexpr, U: tl.constexpr,
    PART_N: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr, HAS_D: tl.constexpr, HAS_PATHS: tl.constexpr,
    PADDED: tl.constexpr, HAS_SEQ: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """U steps forward; leaves their sizes and the slopes of these."""
    for i in tl.static_range(U):
        real = t + i < end
        row = _row(paths, t + i, end, HAS_PATHS, TAIL)
        dt_t = load_row(dt, row, dt_r, in_d, MASKED, PADDED or TAIL) + shift
        delta = softplus(dt_t, FAST) if SOFTPLUS else dt_t
        slope = sigmoid(dt_t, FAST) if SOFTPLUS else delta * 0.0 + 1.0
        if TAIL:
            delta = tl.where(real, delta, 0.0)
            slope = tl.where(real, slope, 0.0)
        tl.store(sizes + i * BD, delta)
        tl.store(slopes + i * BD, slope)
        x_t = load_row(x, row, x_r, in_d, MASKED, PADDED or TAIL)
        if HAS_D:
            sum_D += x_t * load_row(dy, row, dy_r, in_d, MASKED, PADDED or TAIL)
        decay = exp2(delta[:, None] * A, FAST)
        if HAS_SEQ:
            decay = tl.where(continues(seq, paths, tl.minimum(t + i, end - 1), HAS_PATHS), decay, 0.0)
        B_t = load_row(B, row, B_r, in_n, PART_N, PADDED or TAIL)
        h = decay * h + (delta * x_t)[:, None] * B_t[None, :]
    return h, sum_D


@triton.jit
def _row(paths, t, end, HAS_PATHS: tl.constexpr, TAIL: tl.constexpr):
    """The row visited; -1, as if padded, for steps after the last."""
    if TAIL:
        return tl.where(t < end, visited_row(paths, tl.minimum(t, end - 1), HAS_PATHS), -1)
    else:
        return visited_row(paths, t, HAS_PATHS)


@triton.jit
def _back(
    h, g, sum_A, sum_bias, t, end, A, skip, in_d, in_n, dy, x, B, C, paths, seq, sizes, slopes, dx, ddt, dB, dC,
    dy_r: tl.constexpr, x_r: tl.constexpr, B_r: tl.constexpr, C_r: tl.constexpr, dx_r: tl.constexpr,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, PART_N: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr,
    HAS_D: tl.constexpr, HAS_PATHS: tl.constexpr, PADDED: tl.constexpr, HAS_SEQ: tl.constexpr, STEPPED: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """U steps forward once more from h, then back over them; g is the gradient of the state after them."""
    steps = ()
    for i in tl.static_range(U):
        row = _row(paths, t + i, end, HAS_PATHS, TAIL)
        x_t = load_row(x, row, x_r, in_d, MASKED, PADDED or TAIL)
        B_t = load_row(B, row, B_r, in_n, PART_N, PADDED or TAIL)
        delta = tl.load(sizes + i * BD)
        decay = decays(delta, A, FAST)
        if HAS_SEQ:
            decay = tl.where(continues(seq, paths, tl.minimum(t + i, end - 1), HAS_PATHS), decay, 0.0)
        steps = steps + ((row, x_t, B_t, delta, decay, h),)
        h = decay * h + (delta * x_t)[None, :] * B_t[:, None]
    for i in tl.static_range(U):
        row, x_t, B_t, delta, decay, before = steps[U - 1 - i]
        written = row >= 0
        place = tl.cast(t + U - 1 - i if STEPPED else row, tl.int64)
        dy_t = load_row(dy, row, dy_r, in_d, MASKED, PADDED or TAIL)
        C_t = load_row(C, row, C_r, in_n, PART_N, PADDED or TAIL)
        g += C_t[:, None] * dy_t[None, :]
        tl.store(dC + place * N, sum_channels(h, dy_t[None, :]), mask=in_n & written if PADDED or TAIL else in_n)
        into_B = sum_channels(g, (delta * x_t)[None, :])
        tl.store(dB + place * N, into_B, mask=in_n & written if PADDED or TAIL else in_n)
        into_input = sum_states(g, B_t[:, None], NEIGHBOURS=False)
        g *= decay
        flow = g * before
        sum_A += flow * delta[None, :]
        into_size = sum_states(flow, A, NEIGHBOURS=False) * LN2 + into_input * x_t
        into_dt = into_size * tl.load(slopes + (U - 1 - i) * BD)
        sum_bias += into_dt
        into_x = into_input * delta
        if HAS_D:
            into_x += skip * dy_t
        tl.store(dx + place * dx_r, into_x, mask=in_d & written if PADDED or TAIL else in_d)
        tl.store(ddt + place * dx_r, into_dt, mask=in_d & written if PADDED or TAIL else in_d)
        h = before
    return g, sum_A, sum_bias
