# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan as one differentiable op, `vlmamba::ssd_scan`, over every fast backend.

A backend is a module with two pure functions, `forward` and `backward`, and the one-step form `update`. Operands
(B batch, L steps, H heads, P head size, G groups, N state size); A, D, dt_bias, the state, `last`, `y` and `states` are
float32, or float64 when all is:

    x, z           (B, L, H, P)
    dt             (B, L, H)         before bias, softplus and clamping to low..high
    A, dt_bias     (H,)
    B, C           (B, L, G, N)
    D              (H, P)
    seq_idx        int32 (B, L)
    state          (B, H, P, N)

`forward` gives `out` (B, L, H, P) in x's dtype, `last` (B, H, P, N) and, where `keep` asks for them, `y`, out before
the gate (only if there is one), and `states` (B, ceil(L / chunk_size), H, P, N), the state that enters each chunk:
what `backward` starts from. `backward` gives a gradient for every operand that is there, shaped and typed as it is.
"""

from types import ModuleType

import torch

from vlmamba.ops.backend import implementation
from vlmamba.ops.registration import absent, all_there, differentiable_op, given, graph_op, where_given
from vlmamba.ops.ssd import chunked, native

Tensor = torch.Tensor


def _triton() -> ModuleType:
    from vlmamba.ops.ssd import triton

    return triton


BACKENDS = {"triton": _triton, "native": lambda: native, "torch": lambda: chunked}


def _backend(A: Tensor) -> ModuleType:
    return implementation(BACKENDS, A)()


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    state: Tensor | None,
    chunk_size: int,
    softplus: bool,
    low: float,
    high: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        results = _backend(A).forward(
            x, dt, A, B, C, D, z, dt_bias, seq_idx, state, chunk_size, softplus, low, high, keep
        )
    return all_there(results, A)


def _fake(x, dt, A, B, C, D, z, dt_bias, seq_idx, state, chunk_size, softplus, low, high, keep):
    batch, length, heads, size = x.shape
    shape = (heads, size, B.shape[3])
    y = A.new_empty(x.shape) if keep and z is not None else absent(A)
    states = A.new_empty(batch, (length + chunk_size - 1) // chunk_size, *shape) if keep else absent(A)
    return x.new_empty(x.shape), A.new_empty(batch, *shape), y, states


def _backward_function(
    dout: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    y: Tensor | None,
    states: Tensor,
    chunk_size: int,
    softplus: bool,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    operands = (x, dt, A, B, C, D, z, dt_bias, seq_idx, y, states)
    with torch.autocast(x.device.type, enabled=False):
        gradients = _backend(A).backward(dout, dlast, *operands, chunk_size, softplus, low, high)
    return all_there(gradients, A)


def _backward_fake(dout, dlast, x, dt, A, B, C, D, z, dt_bias, seq_idx, y, states, chunk_size, softplus, low, high):
    gradients = [absent(A) if v is None else v.new_empty(v.shape) for v in (x, dt, A, B, C, D, z, dt_bias)]
    return (*gradients, A.new_empty(x.shape[0], *x.shape[2:], B.shape[3]))


_backward_op = graph_op("ssd_scan_backward", _backward_function, _backward_fake)


def _setup_context(ctx, inputs, output):
    *operands, state, chunk_size, softplus, low, high, _ = inputs
    _, _, y, states = output
    ctx.save_for_backward(*operands, given(y), states)
    ctx.options, ctx.has_state = (chunk_size, softplus, low, high), state is not None
    ctx.mark_non_differentiable(y, states)
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dlast, *_):
    saved = ctx.saved_tensors  # once: checkpointing makes them again each time
    dout = saved[0].new_zeros(()).expand(saved[0].shape) if dout is None else dout
    *gradients, dstate = _backward_op(dout, dlast, *saved, *ctx.options)
    dstate = dstate if ctx.has_state else None
    return *where_given(gradients, saved), None, dstate, None, None, None, None, None


ssd_scan_op = differentiable_op("ssd_scan", _forward, _fake, _setup_context, _backward)
