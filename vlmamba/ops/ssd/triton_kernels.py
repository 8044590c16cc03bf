# SPDX-License-Identifier: Apache-2.0
"""GPU kernels of Mamba-2's scan, forward, and what the backward kernel shares with them; `triton.py` starts them.

The method is that of `chunked.py`. A program owns a chunk of at most BQ steps and BP numbers of one head. Letters: b
batch, c chunk, h head, g group, q step of the chunk, t step, p number of the head, n state. Logarithms are of base 2.
"""

import triton
import triton.language as tl

from vlmamba.ops.triton.elementwise import LOG2E, exp2, sigmoid, softplus


@triton.jit
def chunk_place(chunks, heads, parts):
    """(b, c, h, part of the head's numbers) of this program."""
    pid = tl.program_id(0)
    part = pid % parts
    pid = pid // parts
    h = pid % heads
    pid = pid // heads
    return (pid // chunks).to(tl.int64), pid % chunks, h, part


@triton.jit
def step_times(
    dt, seq, t, inside, A, bias, low, high, dt_l, HAS_SEQ: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr
):  # fmt: skip
    """dt with its bias, after softplus, after clamping, and the decay's logarithm; the last two 0 outside the chunk."""
    raw = tl.load(dt + t.to(tl.int64) * dt_l, mask=inside, other=0.0).to(tl.float32) + bias
    unlimited = softplus(raw, FAST) if SOFTPLUS else raw
    delta = tl.where(inside, tl.minimum(tl.maximum(unlimited, low), high), 0.0)
    logs = delta * A * LOG2E
    if HAS_SEQ:
        here = tl.load(seq + t, mask=inside, other=0)
        logs = tl.where(
            inside & (t > 0) & (here != tl.load(seq + t - 1, mask=inside & (t > 0), other=0)), -float("inf"), logs
        )
    return raw, unlimited, delta, logs


@triton.jit
def load_block(pointer, rows, row_stride, columns, in_rows, in_columns):
    """[rows, columns] in float32, 0 outside."""
    here = pointer + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
    return tl.load(here, mask=in_rows[:, None] & in_columns[None, :], other=0.0).to(tl.float32)


@triton.jit
def dot(a, b, FAST: tl.constexpr):
    """Matrix product as exact as float32's; on NVIDIA's tensor cores three products of shorter numbers."""
    if FAST:
        return tl.dot(a, b, input_precision="tf32x3")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def pair_decays(logs, FAST: tl.constexpr):
    """[BQ, BQ]: the decay over steps j + 1..i for j <= i, else 0; every sum runs over its own terms, none cancels."""
    q = tl.arange(0, logs.shape[0])
    sums = tl.cumsum(tl.where(q[:, None] > q[None, :], logs[:, None], 0.0), axis=0)
    return tl.where(q[:, None] >= q[None, :], exp2(sums, FAST), 0.0)


@triton.jit
def ssd_local_kernel(
    x, dt, A, B, bias, seq, states, decay, length, chunks, chunk, heads, share, low, high,
    x_b, x_l, x_h, dt_b, dt_l, B_b, B_l, B_g, P: tl.constexpr, N: tl.constexpr, BQ: tl.constexpr, BP: tl.constexpr,
    BN: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, BACKWARD: tl.constexpr, SOFTPLUS: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state after it (b, c, h, P, N), and how much it keeps of the one before (b, c, h).

    BACKWARD, with dy and C in place of x and B: what it adds to the gradient of the state before it.
    """
    tiles: tl.constexpr = (N + BN - 1) // BN
    b, c, h, part = chunk_place(chunks, heads, tl.cdiv(P, BP) * tiles)
    q = tl.arange(0, BQ)
    t = c * chunk + q
    inside = (q < chunk) & (t < length)
    p = part // tiles * BP + tl.arange(0, BP)
    n = part % tiles * BN + tl.arange(0, BN)
    dt += b * dt_b + h
    seq += b * length
    A_h = tl.load(A + h)
    shift = tl.load(bias + h) if HAS_BIAS else 0.0
    _, _, delta, logs = step_times(dt, seq, t, inside, A_h, shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST)
    if BACKWARD:
        weights = exp2(tl.cumsum(logs, axis=0), FAST)
    else:
        inside_next = (q + 1 < chunk) & (t + 1 < length)
        _, _, _, after = step_times(dt, seq, t + 1, inside_next, A_h, shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST)
        weights = delta * exp2(tl.cumsum(after, axis=0, reverse=True), FAST)
    rows = load_block(x + b * x_b + h.to(tl.int64) * x_h, t, x_l, p, inside, p < P) * weights[:, None]
    matrix = load_block(B + b * B_b + (h // share).to(tl.int64) * B_g, t, B_l, n, inside, n < N)
    added = dot(tl.trans(rows), matrix, FAST)
    place = (b * chunks + c) * heads + h
    tl.store(states + (place * P + p[:, None]) * N + n[None, :], added, mask=(p < P)[:, None] & (n < N)[None, :])
    if part == 0:
        tl.store(decay + place, exp2(tl.sum(logs, axis=0), FAST))


@triton.jit
def ssd_combine_kernel(
    states, decay, initial, last, chunks, heads, elements,
    HAS_INITIAL: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns what chunks add (b, c, h, elements) into the state before each, in place, and leaves the last (b, h).

    BACKWARD goes from the last chunk to the first: the gradient of the state after each.
    """
    cuts = tl.cdiv(elements, BLOCK)
    e = (tl.program_id(0) % cuts) * BLOCK + tl.arange(0, BLOCK)
    inside = e < elements
    plane = (tl.program_id(0) // cuts).to(tl.int64)
    b = plane // heads
    h = plane % heads
    carry = tl.zeros([BLOCK], tl.float32)
    if HAS_INITIAL:
        carry = tl.load(initial + plane * elements + e, mask=inside, other=0.0)
    for i in range(chunks):
        c = chunks - 1 - i if BACKWARD else i
        place = (b * chunks + c) * heads + h
        added = tl.load(states + place * elements + e, mask=inside, other=0.0)
        tl.store(states + place * elements + e, carry, mask=inside)
        carry = tl.load(decay + place) * carry + added
    tl.store(last + plane * elements + e, carry, mask=inside)


@triton.jit
def ssd_fwd_kernel(
    x, dt, A, B, C, D, z, bias, seq, states, out, y, length, chunks, chunk, heads, share, low, high,
    x_b, x_l, x_h, dt_b, dt_l, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h, P: tl.constexpr, N: tl.constexpr,
    BQ: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SEQ: tl.constexpr, KEEP_Y: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """out and y (b, t, h, P) of a chunk, from the state that enters it."""
    b, c, h, part = chunk_place(chunks, heads, tl.cdiv(P, BP))
    q = tl.arange(0, BQ)
    t = c * chunk + q
    inside = (q < chunk) & (t < length)
    p = part * BP + tl.arange(0, BP)
    wide = h.to(tl.int64)
    shift = tl.load(bias + h) if HAS_BIAS else 0.0
    _, _, delta, logs = step_times(
        dt + b * dt_b + h, seq + b * length, t, inside, tl.load(A + h), shift, low, high, dt_l, HAS_SEQ, SOFTPLUS, FAST
    )  # fmt: skip
    x_q = load_block(x + b * x_b + wide * x_h, t, x_l, p, inside, p < P)
    B += b * B_b + (h // share).to(tl.int64) * B_g
    C += b * C_b + (h // share).to(tl.int64) * C_g
    states += ((b * chunks + c) * heads + h) * P * N
    scores = tl.zeros([BQ, BQ], tl.float32)
    entered = tl.zeros([BQ, BP], tl.float32)
    for tile in range((N + BN - 1) // BN):
        n = tile * BN + tl.arange(0, BN)
        C_q = load_block(C, t, C_l, n, inside, n < N)
        B_q = load_block(B, t, B_l, n, inside, n < N)
        state = load_block(states, p, N, n, p < P, n < N)
        scores += dot(C_q, tl.trans(B_q), FAST)
        entered += dot(C_q, tl.trans(state), FAST)
    mixing = scores * pair_decays(logs, FAST)
    total = entered * exp2(tl.cumsum(logs, axis=0), FAST)[:, None]
    total += dot(mixing, x_q * delta[:, None], FAST)
    if HAS_D:
        total += x_q * tl.load(D + h * P + p, mask=p < P, other=0.0)[None, :]
    place = ((b * length + t[:, None]) * heads + h) * P + p[None, :]
    mask = inside[:, None] & (p < P)[None, :]
    if KEEP_Y:
        tl.store(y + place, total, mask=mask)
    if HAS_Z:
        gate = load_block(z + b * z_b + wide * z_h, t, z_l, p, inside, p < P)
        total *= gate * sigmoid(gate, FAST)
    tl.store(out + place, total, mask=mask)


@triton.jit
def ssd_update_kernel(
    state, x, dt, A, B, C, D, z, bias, y, new, heads, share, low, high, P: tl.constexpr, N: tl.constexpr,
    BP: tl.constexpr, BN: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """One step of BP numbers of a head: x, z, y (b, h, P), dt (b, h), B, C (b, g, N), state, new (b, h, P, N)."""
    part = tl.program_id(0) % tl.cdiv(P, BP)
    bh = (tl.program_id(0) // tl.cdiv(P, BP)).to(tl.int64)
    h = bh % heads
    p = part * BP + tl.arange(0, BP)
    n = tl.arange(0, BN)
    in_p = p < P
    delta = tl.load(dt + bh).to(tl.float32)
    if HAS_BIAS:
        delta += tl.load(bias + h)
    if SOFTPLUS:
        delta = softplus(delta, FAST)
    delta = tl.minimum(tl.maximum(delta, low), high)
    x_p = tl.load(x + bh * P + p, mask=in_p, other=0.0).to(tl.float32)
    group = bh // share
    B_n = tl.load(B + group * N + n, mask=n < N, other=0.0).to(tl.float32)
    C_n = tl.load(C + group * N + n, mask=n < N, other=0.0).to(tl.float32)
    here = (bh * P + p[:, None]) * N + n[None, :]
    mask = in_p[:, None] & (n < N)[None, :]
    value = exp2(delta * tl.load(A + h) * LOG2E, FAST) * tl.load(state + here, mask=mask, other=0.0)
    value += (delta * x_p)[:, None] * B_n[None, :]
    tl.store(new + here, value, mask=mask)
    total = tl.sum(value * C_n[None, :], axis=1)
    if HAS_D:
        total += tl.load(D + h * P + p, mask=in_p, other=0.0) * x_p
    if HAS_Z:
        gate = tl.load(z + bh * P + p, mask=in_p, other=0.0).to(tl.float32)
        total *= gate * sigmoid(gate, FAST)
    tl.store(y + bh * P + p, total, mask=in_p)
