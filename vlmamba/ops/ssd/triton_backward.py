# SPDX-License-Identifier: Apache-2.0
"""The backward kernels of Mamba-2's scan; letters and helpers: `triton_kernels.py`, the method: `chunked.py`.

Four, so that what each holds fits into registers: the pairs of steps of a chunk; then x (by BP numbers of the head) and
B and C (by BN states), from these pairs; then the time steps, from the sums that the others leave.
"""

import triton
import triton.language as tl

from vlmamba.ops.ssd.triton_kernels import chunk_place, dot, load_block, pair_decays, step_times
from vlmamba.ops.triton.elementwise import exp2, sigmoid


@triton.jit
def delayed(values):
    """[BQ] moved to the next step."""
    q = tl.arange(0, values.shape[0])
    return tl.sum(tl.where(q[:, None] + 1 == q[None, :], values[:, None], 0.0), axis=0)


@triton.jit
def ssd_bwd_pairs_kernel(
    dy, x, dt, A, B, C, bias, seq, mixing, dscores, dpairs, length, chunks, chunk, heads, share, low, high,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, dt_b, dt_l, B_b, B_l, B_g, C_b, C_l, C_g, P: tl.constexpr, N: tl.constexpr,
    BQ: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr,
    SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """The matrices that mix a chunk's steps and the gradients of their scores, (b, c, h, BQ, BQ).

    dpairs (b, c, h, BQ): gradients of the decays' logarithms from the pairs of steps.
    """
    b, c, h, _ = chunk_place(chunks, heads, 1)
    q = tl.arange(0, BQ)
    t = c * chunk + q
    inside = (q < chunk) & (t < length)
    wide = h.to(tl.int64)
    shift = tl.load(bias + h) if HAS_BIAS else 0.0
    _, _, delta, logs = step_times(
        dt + b * dt_b + h, seq + b * length, t, inside, tl.load(A + h), shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST
    )  # fmt: skip
    group = (h // share).to(tl.int64)
    scores = tl.zeros([BQ, BQ], tl.float32)
    for tile in range((N + BN - 1) // BN):
        n = tile * BN + tl.arange(0, BN)
        C_q = load_block(C + b * C_b + group * C_g, t, C_l, n, inside, n < N)
        B_q = load_block(B + b * B_b + group * B_g, t, B_l, n, inside, n < N)
        scores += dot(C_q, tl.trans(B_q), FAST)
    gradient = tl.zeros([BQ, BQ], tl.float32)
    for part in range((P + BP - 1) // BP):
        p = part * BP + tl.arange(0, BP)
        dy_q = load_block(dy + b * dy_b + wide * dy_h, t, dy_l, p, inside, p < P)
        x_q = load_block(x + b * x_b + wide * x_h, t, x_l, p, inside, p < P)
        gradient += dot(dy_q, tl.trans(x_q * delta[:, None]), FAST)
    gradient *= pair_decays(logs, FAST)
    place = (b * chunks + c) * heads + h
    square = place * BQ * BQ + q[:, None] * BQ + q[None, :]
    tl.store(dscores + square, gradient)
    # the log of step k is in all pairs j < k <= i
    below = q[:, None] > q[None, :]
    across = tl.cumsum(tl.where(below, gradient * scores, 0.0), axis=1)
    tl.store(dpairs + place * BQ + q, delayed(tl.sum(tl.where(below, across, 0.0), axis=0)))
    tl.store(mixing + square, scores * pair_decays(logs, FAST))


@triton.jit
def ssd_bwd_x_kernel(
    dy, x, dt, A, B, C, D, bias, seq, states, left, mixing, dx, sums, dD,
    length, chunks, chunk, heads, share, low, high,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, dt_b, dt_l, B_b, B_l, B_g, C_b, C_l, C_g, P: tl.constexpr, N: tl.constexpr,
    BQ: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SEQ: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dx (b, t, h, P), dD (b, c, h, P), and what the time steps get from these numbers of the head.

    sums (b, c, h, part, 4, BQ): gradients of the inputs times x, of `enter`, of `leave` and of the whole chunk's decay.
    From `states` and `left`, the state before the chunk and the gradient of that after it, (b, c, h, P, N).
    """
    parts: tl.constexpr = (P + BP - 1) // BP
    b, c, h, part = chunk_place(chunks, heads, parts)
    q = tl.arange(0, BQ)
    t = c * chunk + q
    inside = (q < chunk) & (t < length)
    p = part * BP + tl.arange(0, BP)
    in_p = p < P
    wide = h.to(tl.int64)
    A_h = tl.load(A + h)
    shift = tl.load(bias + h) if HAS_BIAS else 0.0
    dt += b * dt_b + h
    seq += b * length
    _, _, delta, logs = step_times(dt, seq, t, inside, A_h, shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST)
    next_inside = (q + 1 < chunk) & (t + 1 < length)
    _, _, _, after = step_times(dt, seq, t + 1, next_inside, A_h, shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST)
    leave = exp2(tl.cumsum(after, axis=0, reverse=True), FAST)

    B += b * B_b + (h // share).to(tl.int64) * B_g
    C += b * C_b + (h // share).to(tl.int64) * C_g
    place = (b * chunks + c) * heads + h
    reached = tl.zeros([BQ, BP], tl.float32)
    leaving = tl.zeros([BQ, BP], tl.float32)
    whole = tl.zeros([BP], tl.float32)
    for tile in range((N + BN - 1) // BN):
        n = tile * BN + tl.arange(0, BN)
        state = load_block(states + place * P * N, p, N, n, in_p, n < N)
        later = load_block(left + place * P * N, p, N, n, in_p, n < N)
        reached += dot(load_block(C, t, C_l, n, inside, n < N), tl.trans(state), FAST)
        leaving += dot(load_block(B, t, B_l, n, inside, n < N), tl.trans(later), FAST)
        whole += tl.sum(state * later, axis=1)
    dy_q = load_block(dy + b * dy_b + wide * dy_h, t, dy_l, p, inside, in_p)
    x_q = load_block(x + b * x_b + wide * x_h, t, x_l, p, inside, in_p)
    sums += (place * parts + part) * 4 * BQ + q
    enter = exp2(tl.cumsum(logs, axis=0), FAST)
    tl.store(sums + BQ, tl.sum(dy_q * reached, axis=1) * enter)
    tl.store(sums + 2 * BQ, tl.sum(x_q * leaving, axis=1) * delta * leave)
    tl.store(sums + 3 * BQ, tl.sum(whole, axis=0) * exp2(tl.sum(logs, axis=0), FAST) + tl.zeros([BQ], tl.float32))
    # [j, i]: what step i hears of step j
    heard = tl.load(mixing + place * BQ * BQ + q[None, :] * BQ + q[:, None])
    into_inputs = dot(heard, dy_q, FAST) + leaving * leave[:, None]
    tl.store(sums, tl.sum(into_inputs * x_q, axis=1))
    into_x = into_inputs * delta[:, None]
    if HAS_D:
        into_x += dy_q * tl.load(D + h * P + p, mask=in_p, other=0.0)[None, :]
        tl.store(dD + place * P + p, tl.sum(dy_q * x_q, axis=0), mask=in_p)
    rows = ((b * length + t[:, None]) * heads + h) * P + p[None, :]
    tl.store(dx + rows, into_x, mask=inside[:, None] & in_p[None, :])


@triton.jit
def ssd_bwd_matrices_kernel(
    dy, x, dt, A, B, C, bias, seq, states, left, dscores, dB, dC, length, chunks, chunk, heads, share, low, high,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, dt_b, dt_l, B_b, B_l, B_g, C_b, C_l, C_g, P: tl.constexpr, N: tl.constexpr,
    BQ: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr,
    SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dB and dC by head, (b, t, h, N)."""
    b, c, h, tile = chunk_place(chunks, heads, tl.cdiv(N, BN))
    q = tl.arange(0, BQ)
    t = c * chunk + q
    inside = (q < chunk) & (t < length)
    n = tile * BN + tl.arange(0, BN)
    in_n = n < N
    wide = h.to(tl.int64)
    A_h = tl.load(A + h)
    shift = tl.load(bias + h) if HAS_BIAS else 0.0
    dt += b * dt_b + h
    seq += b * length
    _, _, delta, logs = step_times(dt, seq, t, inside, A_h, shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST)
    next_inside = (q + 1 < chunk) & (t + 1 < length)
    _, _, _, after = step_times(dt, seq, t + 1, next_inside, A_h, shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST)
    enter = exp2(tl.cumsum(logs, axis=0), FAST)
    leave = delta * exp2(tl.cumsum(after, axis=0, reverse=True), FAST)

    place = (b * chunks + c) * heads + h
    group = (h // share).to(tl.int64)
    square = dscores + place * BQ * BQ
    C_q = load_block(C + b * C_b + group * C_g, t, C_l, n, inside, in_n)
    into_B = dot(tl.load(square + q[None, :] * BQ + q[:, None]), C_q, FAST)
    B_q = load_block(B + b * B_b + group * B_g, t, B_l, n, inside, in_n)
    into_C = dot(tl.load(square + q[:, None] * BQ + q[None, :]), B_q, FAST)
    for part in range((P + BP - 1) // BP):
        p = part * BP + tl.arange(0, BP)
        dy_q = load_block(dy + b * dy_b + wide * dy_h, t, dy_l, p, inside, p < P)
        into_C += dot(dy_q * enter[:, None], load_block(states + place * P * N, p, N, n, p < P, in_n), FAST)
        x_q = load_block(x + b * x_b + wide * x_h, t, x_l, p, inside, p < P)
        into_B += dot(x_q * leave[:, None], load_block(left + place * P * N, p, N, n, p < P, in_n), FAST)
    rows = ((b * length + t[:, None]) * heads + h) * N + n[None, :]
    mask = inside[:, None] & in_n[None, :]
    tl.store(dB + rows, into_B, mask=mask)
    tl.store(dC + rows, into_C, mask=mask)


@triton.jit
def ssd_bwd_times_kernel(
    dt, A, bias, seq, dpairs, sums, ddt, dA, dbias, length, chunks, chunk, heads, share, low, high, dt_b, dt_l,
    PARTS: tl.constexpr, BQ: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, SOFTPLUS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """ddt (b, t, h), and by chunk dA and dbias (b, c, h)."""
    b, c, h, _ = chunk_place(chunks, heads, 1)
    q = tl.arange(0, BQ)
    t = c * chunk + q
    inside = (q < chunk) & (t < length)
    A_h = tl.load(A + h)
    shift = tl.load(bias + h) if HAS_BIAS else 0.0
    raw, unlimited, delta, _ = step_times(
        dt + b * dt_b + h, seq + b * length, t, inside, A_h, shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST
    )  # fmt: skip
    place = (b * chunks + c) * heads + h
    into_dt = tl.zeros([BQ], tl.float32)
    enter = tl.zeros([BQ], tl.float32)
    leave = tl.zeros([BQ], tl.float32)
    dlogs = tl.load(dpairs + place * BQ + q)
    for part in range(PARTS):
        here = sums + (place * PARTS + part) * 4 * BQ + q
        into_dt += tl.load(here)
        enter += tl.load(here + BQ)
        leave += tl.load(here + 2 * BQ)
        dlogs += tl.load(here + 3 * BQ)
    dlogs += tl.cumsum(enter, axis=0, reverse=True) + delayed(tl.cumsum(leave, axis=0))
    tl.store(dA + place, tl.sum(dlogs * delta, axis=0))
    into_dt += dlogs * A_h
    into_dt = tl.where(inside & (unlimited >= low) & (unlimited <= high), into_dt, 0.0)
    if SOFTPLUS:
        into_dt *= sigmoid(raw, FAST)
    tl.store(ddt + (b * length + t) * heads + h, into_dt, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + place, tl.sum(into_dt, axis=0))
