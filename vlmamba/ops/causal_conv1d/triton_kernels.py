# SPDX-License-Identifier: Apache-2.0
"""GPU kernels of the causal convolution; `triton.py` starts them.

A program owns BT steps and BD channels of one sequence and direction. Steps before the first are those of the state:
step -1 is its newest. Letters: b batch, k direction, t step, d channel.
"""

import triton
import triton.language as tl

from vlmamba.ops.triton.elementwise import sigmoid


@triton.jit
def _place(channels, directions, steps, BT: tl.constexpr, BD: tl.constexpr):
    """(b, k, block of steps, channels [BD]) of this program."""
    pid = tl.program_id(0)
    cuts = tl.cdiv(channels, BD)
    d = (pid % cuts) * BD + tl.arange(0, BD)
    pid = pid // cuts
    part = pid % tl.cdiv(steps, BT)
    pid = pid // tl.cdiv(steps, BT)
    return (pid // directions).to(tl.int64), (pid % directions).to(tl.int64), part, d


@triton.jit
def _rows(paths, t, steps, HAS_PATHS: tl.constexpr):
    """Rows of steps [BT]; below 0 for padded ones and outside the sequence."""
    inside = (t >= 0) & (t < steps)
    if HAS_PATHS:
        return tl.load(paths + t, mask=inside, other=-1)
    else:
        return tl.where(inside, t, -1)


@triton.jit
def _sequence(seq, paths, t, steps, HAS_PATHS: tl.constexpr):
    """Numbers of the packed sequences of steps [BT]; the state continues the first."""
    return tl.load(seq + tl.maximum(_rows(paths, tl.maximum(t, 0), steps, HAS_PATHS), 0))


@triton.jit
def _inputs(x, state, paths, t, steps, d, in_d, x_r: tl.constexpr, W: tl.constexpr, HAS_PATHS: tl.constexpr,
            HAS_STATE: tl.constexpr):  # fmt: skip
    """x at steps [BT], as [BT, BD] in float32."""
    row = _rows(paths, t, steps, HAS_PATHS)
    mask = (row >= 0)[:, None] & in_d[None, :]
    value = tl.load(x + row[:, None].to(tl.int64) * x_r + d[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_STATE:
        old = (t < 0) & (t > -W)
        index = d[None, :] * (W - 1) + (t + W - 1)[:, None]
        value += tl.load(state + index, mask=old[:, None] & in_d[None, :], other=0.0)
    return value


@triton.jit
def _sums(x, weight, bias, state, paths, seq, t, steps, d, in_d, x_r: tl.constexpr, W: tl.constexpr,
          HAS_BIAS: tl.constexpr, HAS_PATHS: tl.constexpr, HAS_SEQ: tl.constexpr, HAS_STATE: tl.constexpr):  # fmt: skip
    """[BT, BD], before the activation."""
    total = tl.zeros([t.shape[0], d.shape[0]], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + d, mask=in_d, other=0.0)[None, :]
    for w in tl.static_range(W):
        source = t - (W - 1 - w)
        value = _inputs(x, state, paths, source, steps, d, in_d, x_r, W, HAS_PATHS, HAS_STATE)
        if HAS_SEQ:
            same = _sequence(seq, paths, source, steps, HAS_PATHS) == _sequence(seq, paths, t, steps, HAS_PATHS)
            value = tl.where(same[:, None], value, 0.0)
        total += value * tl.load(weight + d * W + w, mask=in_d, other=0.0)[None, :]
    return total


@triton.jit
def conv_fwd_kernel(
    x, weight, bias, paths, seq, state, y, last, channels, directions, length, steps, x_b, x_k, x_r: tl.constexpr,
    W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PATHS: tl.constexpr,
    HAS_SEQ: tl.constexpr, HAS_STATE: tl.constexpr, STEPPED: tl.constexpr, SILU: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """y (b, k, row visited or step, D); `last` (b, k, D, W - 1) from the program of the last steps."""
    b, k, part, d = _place(channels, directions, steps, BT, BD)
    in_d = d < channels
    t = part * BT + tl.arange(0, BT)
    x += b * x_b + k * x_k
    weight += k * channels * W
    bias += k * channels
    paths += k * steps
    seq += b * length
    bk = b * directions + k
    state += bk * channels * (W - 1)
    last += bk * channels * (W - 1)

    total = _sums(
        x, weight, bias, state, paths, seq, t, steps, d, in_d, x_r, W, HAS_BIAS, HAS_PATHS, HAS_SEQ, HAS_STATE
    )
    if SILU:
        total *= sigmoid(total, FAST)
    row = _rows(paths, t, steps, HAS_PATHS)
    y += bk * (steps if STEPPED else length) * channels
    place = (t if STEPPED else row)[:, None].to(tl.int64) * channels + d[None, :]
    tl.store(y + place, total, mask=(row >= 0)[:, None] & in_d[None, :])
    if part == tl.cdiv(steps, BT) - 1:
        for j in tl.static_range(W - 1):
            source = steps - (W - 1) + j + tl.arange(0, 1)
            value = _inputs(x, state, paths, source, steps, d, in_d, x_r, W, HAS_PATHS, HAS_STATE)
            tl.store(last + d[None, :] * (W - 1) + j, value, mask=in_d[None, :])


@triton.jit
def conv_bwd_sums_kernel(
    dy, x, weight, bias, paths, seq, state, dsums, dweight, dbias, channels, directions, length, steps,
    dy_b, dy_k, x_b, x_k, dy_r: tl.constexpr, x_r: tl.constexpr,
    W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_PATHS: tl.constexpr,
    HAS_SEQ: tl.constexpr, HAS_STATE: tl.constexpr, SILU: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Gradients of the sums before the activation (b, k, T, D), and each program's part of those of weight and bias.

    dweight: (b, block of steps, k, D, W). dbias: (b, block of steps, k, D).
    """
    b, k, part, d = _place(channels, directions, steps, BT, BD)
    in_d = d < channels
    t = part * BT + tl.arange(0, BT)
    dy += b * dy_b + k * dy_k
    x += b * x_b + k * x_k
    weight += k * channels * W
    bias += k * channels
    paths += k * steps
    seq += b * length
    bk = b * directions + k
    state += bk * channels * (W - 1)

    row = _rows(paths, t, steps, HAS_PATHS)
    inside = (row >= 0)[:, None] & in_d[None, :]
    wide = row[:, None].to(tl.int64)
    gradient = tl.load(dy + wide * dy_r + d[None, :], mask=inside, other=0.0).to(tl.float32)
    if SILU:
        total = _sums(
            x, weight, bias, state, paths, seq, t, steps, d, in_d, x_r, W, HAS_BIAS, HAS_PATHS, HAS_SEQ, HAS_STATE
        )
        slope = sigmoid(total, FAST)
        gradient *= slope + total * slope * (1 - slope)
    place = (bk * steps + t[:, None]) * channels + d[None, :]
    tl.store(dsums + place, gradient, mask=(t < steps)[:, None] & in_d[None, :])
    parts = ((b * tl.cdiv(steps, BT) + part) * directions + k) * channels
    for w in tl.static_range(W):
        source = t - (W - 1 - w)
        value = _inputs(x, state, paths, source, steps, d, in_d, x_r, W, HAS_PATHS, HAS_STATE)
        if HAS_SEQ:
            same = _sequence(seq, paths, source, steps, HAS_PATHS) == _sequence(seq, paths, t, steps, HAS_PATHS)
            value = tl.where(same[:, None], value, 0.0)
        tl.store(dweight + (parts + d) * W + w, tl.sum(gradient * value, axis=0), mask=in_d)
    if HAS_BIAS:
        tl.store(dbias + parts + d, tl.sum(gradient, axis=0), mask=in_d)


@triton.jit
def conv_bwd_inputs_kernel(
    dsums, weight, paths, seq, dlast, dx, dstate, channels, directions, length, steps,
    W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, HAS_PATHS: tl.constexpr, HAS_SEQ: tl.constexpr,
    HAS_LAST: tl.constexpr, STEPPED: tl.constexpr,
):  # fmt: skip
    """dx (b, k, row visited or step, D) and dstate (b, k, D, W - 1), from the gradients of the sums (b, k, T, D)."""
    b, k, part, d = _place(channels, directions, steps + W - 1, BT, BD)
    in_d = d < channels
    source = part * BT + tl.arange(0, BT) - (W - 1)
    weight += k * channels * W
    paths += k * steps
    seq += b * length
    bk = b * directions + k

    gradient = tl.zeros([BT, BD], tl.float32)
    for w in tl.static_range(W):
        t = source + W - 1 - w
        inside = ((t >= 0) & (t < steps))[:, None] & in_d[None, :]
        value = tl.load(dsums + (bk * steps + t[:, None]) * channels + d[None, :], mask=inside, other=0.0)
        if HAS_SEQ:
            at = tl.minimum(t, steps - 1)
            same = _sequence(seq, paths, source, steps, HAS_PATHS) == _sequence(seq, paths, at, steps, HAS_PATHS)
            value = tl.where(same[:, None], value, 0.0)
        gradient += value * tl.load(weight + d * W + w, mask=in_d, other=0.0)[None, :]
    if HAS_LAST:
        j = source - (steps - (W - 1))
        index = (bk * channels + d[None, :]) * (W - 1) + j[:, None]
        kept = (j >= 0) & (j < W - 1)
        gradient += tl.load(dlast + index, mask=kept[:, None] & in_d[None, :], other=0.0)
    row = _rows(paths, source, steps, HAS_PATHS)
    dx += bk * (steps if STEPPED else length) * channels
    place = (source if STEPPED else row)[:, None].to(tl.int64) * channels + d[None, :]
    tl.store(dx + place, gradient, mask=(row >= 0)[:, None] & in_d[None, :])
    index = (bk * channels + d[None, :]) * (W - 1) + (source + W - 1)[:, None]
    tl.store(dstate + index, gradient, mask=(source < 0)[:, None] & in_d[None, :])


@triton.jit
def conv_update_kernel(
    x, state, weight, bias, y, new, items, channels, W: tl.constexpr, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """One step of all channels of all sequences: x, y (B, D), state, new (B, D, W - 1)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < items
    d = i % channels
    x_t = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    total = x_t * tl.load(weight + d * W + W - 1, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + d, mask=inside, other=0.0)
    for w in tl.static_range(W - 1):
        value = tl.load(state + i * (W - 1) + w, mask=inside, other=0.0)
        total += value * tl.load(weight + d * W + w, mask=inside, other=0.0)
        if w > 0:
            tl.store(new + i * (W - 1) + w - 1, value, mask=inside)
    if W > 1:
        tl.store(new + i * (W - 1) + W - 2, x_t, mask=inside)
    if SILU:
        total *= sigmoid(total, FAST)
    tl.store(y + i, total, mask=inside)
