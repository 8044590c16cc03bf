# SPDX-License-Identifier: Apache-2.0
"""The backward kernel of Mamba-2's scan; letters and helpers: `triton_kernels.py`, the method: `chunked.py`."""

import triton
import triton.language as tl

from vlmamba.ops.ssd.triton_kernels import chunk_place, dot, load_block, pair_decays, step_times
from vlmamba.ops.triton.elementwise import exp2, sigmoid


@triton.jit
def log_gradients(pairs, enter, leave, whole):
    """Gradients of the decays' logarithms [BQ] from those of their sums, as `log_gradients` of chunked.py."""
    q = tl.arange(0, enter.shape[0])
    below = q[:, None] > q[None, :]
    across = tl.cumsum(tl.where(below, pairs, 0.0), axis=1)
    before = tl.sum(tl.where(below, across, 0.0), axis=0) + tl.cumsum(leave, axis=0)
    # what step q has in `before` belongs to the step after it
    shifted = tl.sum(tl.where(q[:, None] + 1 == q[None, :], before[:, None], 0.0), axis=0)
    return tl.cumsum(enter, axis=0, reverse=True) + whole + shifted


@triton.jit
def ssd_bwd_kernel(
    dy, x, dt, A, B, C, D, bias, seq, states, left, dx, ddt, dA, dB, dC, dD, dbias,
    length, chunks, chunk, heads, share, low, high,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, dt_b, dt_l, B_b, B_l, B_g, C_b, C_l, C_g, P: tl.constexpr, N: tl.constexpr,
    BQ: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_SEQ: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk, from the state before it and the gradient of that after it (`left`), (b, c, h, P, N).

    dx (b, t, h, P) and ddt (b, t, h); dB, dC by head, (b, t, h, N); dA, dbias (b, c, h) and dD (b, c, h, P) by chunk.
    """
    b, c, h, _ = chunk_place(chunks, heads, 1)
    q = tl.arange(0, BQ)
    t = c * chunk + q
    inside = (q < chunk) & (t < length)
    p = tl.arange(0, BP)
    in_p = p < P
    wide = h.to(tl.int64)
    group = (h // share).to(tl.int64)
    A_h = tl.load(A + h)
    shift = tl.load(bias + h) if HAS_BIAS else 0.0
    dt += b * dt_b + h
    seq += b * length
    raw, unlimited, delta, logs = step_times(
        dt, seq, t, inside, A_h, shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST
    )  # fmt: skip
    inside_next = (q + 1 < chunk) & (t + 1 < length)
    _, _, _, after = step_times(dt, seq, t + 1, inside_next, A_h, shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST)
    pair = pair_decays(logs, FAST)
    enter = exp2(tl.cumsum(logs, axis=0), FAST)
    leave = exp2(tl.cumsum(after, axis=0, reverse=True), FAST)

    dy_q = load_block(dy + b * dy_b + wide * dy_h, t, dy_l, p, inside, in_p)
    x_q = load_block(x + b * x_b + wide * x_h, t, x_l, p, inside, in_p)
    inputs = x_q * delta[:, None]
    B += b * B_b + group * B_g
    C += b * C_b + group * C_g
    place = (b * chunks + c) * heads + h
    states += place * P * N
    left += place * P * N
    scores = tl.zeros([BQ, BQ], tl.float32)
    reached = tl.zeros([BQ, BP], tl.float32)
    leaving = tl.zeros([BQ, BP], tl.float32)
    whole = tl.zeros([BP], tl.float32)
    for tile in range((N + BN - 1) // BN):
        n = tile * BN + tl.arange(0, BN)
        C_q = load_block(C, t, C_l, n, inside, n < N)
        B_q = load_block(B, t, B_l, n, inside, n < N)
        state = load_block(states, p, N, n, in_p, n < N)
        after_it = load_block(left, p, N, n, in_p, n < N)
        scores += dot(C_q, tl.trans(B_q), FAST)
        reached += dot(C_q, tl.trans(state), FAST)
        leaving += dot(B_q, tl.trans(after_it), FAST)
        whole += tl.sum(state * after_it, axis=1)

    dmixing = dot(dy_q, tl.trans(inputs), FAST)
    mixing = scores * pair
    dinputs = dot(tl.trans(mixing), dy_q, FAST) + leaving * leave[:, None]
    dlogs = log_gradients(
        dmixing * mixing,
        tl.sum(dy_q * reached, axis=1) * enter,
        tl.sum(inputs * leaving, axis=1) * leave,
        tl.sum(whole, axis=0) * exp2(tl.sum(logs, axis=0), FAST),
    )
    into_dt = tl.sum(dinputs * x_q, axis=1) + dlogs * A_h
    into_dt = tl.where(inside & (unlimited >= low) & (unlimited <= high), into_dt, 0.0)
    if SOFTPLUS:
        into_dt *= sigmoid(raw, FAST)
    rows = b * length + t
    tl.store(ddt + rows * heads + h, into_dt, mask=inside)
    tl.store(dA + place, tl.sum(dlogs * delta, axis=0))
    if HAS_BIAS:
        tl.store(dbias + place, tl.sum(into_dt, axis=0))
    into_x = dinputs * delta[:, None]
    if HAS_D:
        into_x += dy_q * tl.load(D + h * P + p, mask=in_p, other=0.0)[None, :]
        tl.store(dD + place * P + p, tl.sum(dy_q * x_q, axis=0), mask=in_p)
    by_head = rows[:, None] * heads + h
    tl.store(dx + by_head * P + p[None, :], into_x, mask=inside[:, None] & in_p[None, :])

    dscores = dmixing * pair
    entered = dy_q * enter[:, None]
    left_inputs = inputs * leave[:, None]
    for tile in range((N + BN - 1) // BN):
        n = tile * BN + tl.arange(0, BN)
        mask = inside[:, None] & (n < N)[None, :]
        B_q = load_block(B, t, B_l, n, inside, n < N)
        state = load_block(states, p, N, n, in_p, n < N)
        into_C = dot(dscores, B_q, FAST)
        into_C += dot(entered, state, FAST)
        tl.store(dC + by_head * N + n[None, :], into_C, mask=mask)
        C_q = load_block(C, t, C_l, n, inside, n < N)
        after_it = load_block(left, p, N, n, in_p, n < N)
        into_B = dot(tl.trans(dscores), C_q, FAST)
        into_B += dot(left_inputs, after_it, FAST)
        tl.store(dB + by_head * N + n[None, :], into_B, mask=mask)
