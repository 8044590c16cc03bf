# SPDX-License-Identifier: Apache-2.0
"""The causal convolution as one differentiable op, `vlmamba::causal_conv1d`, over every fast backend.

A backend is a module with two pure functions, `forward` and `backward`, and the one-step form `update`. Operands,
channel-last (B batch, K directions, L rows, T steps, D channels, W taps); weight, bias and state are float32, or
float64 when all is:

    x                (B, 1 | K, L, D)     1 in K's place: shared by all directions
    weight, bias     (K, D, W), (K, D)
    paths, seq_idx   int32 (K, T), (B, L)
    state            (B, K, D, W - 1)

`forward` gives `y` (B, K, L, D) and `last` (B, K, D, W - 1), both typed as x. `backward` gives a gradient for every
operand that is there, shaped and typed as it is.
"""

from types import ModuleType

import torch

from vlmamba.ops.backend import implementation
from vlmamba.ops.causal_conv1d import native, shifted
from vlmamba.ops.registration import absent, all_there, differentiable_op, graph_op

Tensor = torch.Tensor


def _triton() -> ModuleType:
    from vlmamba.ops.causal_conv1d import triton

    return triton


BACKENDS = {"triton": _triton, "native": lambda: native, "torch": lambda: shifted}


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Tensor | None,
    seq_idx: Tensor | None,
    state: Tensor | None,
    silu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    return implementation(BACKENDS, weight)().forward(x, weight, bias, paths, seq_idx, state, silu)


def _fake(x, weight, bias, paths, seq_idx, state, silu, keep):
    directions, channels, taps = weight.shape
    shape = (x.shape[0], directions)
    return x.new_empty(*shape, *x.shape[2:]), x.new_empty(*shape, channels, taps - 1)


def _gradients(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Tensor | None,
    seq_idx: Tensor | None,
    state: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backward = implementation(BACKENDS, weight)().backward
    results = backward(dy, dlast, x, weight, bias, paths, seq_idx, state, silu)
    return all_there(results, weight)


def _fake_gradients(dy, dlast, x, weight, bias, paths, seq_idx, state, silu):
    dbias = absent(weight) if bias is None else torch.empty_like(bias)
    directions, channels, taps = weight.shape
    dstate = weight.new_empty(x.shape[0], directions, channels, taps - 1)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias, dstate


_gradients_op = graph_op("causal_conv1d_backward", _gradients, _fake_gradients)


def _setup_context(ctx, inputs, output):
    *operands, silu, _ = inputs
    ctx.save_for_backward(*operands)
    ctx.silu = silu
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dlast):
    x, weight, bias, paths, seq_idx, state = ctx.saved_tensors
    if dy is None:
        dy = x.new_zeros(()).expand(x.shape[0], weight.shape[0], *x.shape[2:])
    dx, dweight, dbias, dstate = _gradients_op(dy, dlast, x, weight, bias, paths, seq_idx, state, ctx.silu)
    dbias, dstate = None if bias is None else dbias, None if state is None else dstate
    return dx, dweight, dbias, None, None, dstate, None, None


causal_conv1d_op = differentiable_op("causal_conv1d", _forward, _fake, _setup_context, _backward)
