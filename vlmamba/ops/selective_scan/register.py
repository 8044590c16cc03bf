# SPDX-License-Identifier: Apache-2.0
"""The selective scan as one differentiable op, `vlmamba::selective_scan`, over every fast backend.

A backend is a module with two pure functions, `forward` and `backward`. Operands, all channel-last (B batch,
K directions, L rows, T steps, D channels, N state); the state, A, D, dt_bias, `last`, `y` and `states` are float32, or
float64 when all is:

    x, dt            (B, 1 | K, L, D)     1 in K's place: shared by all directions
    B, C             (B, 1 | K, L, N)
    A, D, dt_bias    (K, D, N), (K, D), (K, D)
    z                (B, 1, L, D)         only where `merge` is True
    paths, seq_idx   int32 (K, T), (B, L)
    state            (B, K, D, N)

`forward` gives `out` ((B, 1, L, D) when merged, else (B, K, L, D)), `last` (B, K, D, N) and, where `keep` asks for
them, `y`, out before the gate, and `states` (B, K, ceil(T / 64), N, D), the state before every 64th step: what
`backward` starts from. `backward` gives a gradient for every operand that is there, shaped and typed as it is.
"""

from types import ModuleType

import torch

from vlmamba.ops.backend import implementation
from vlmamba.ops.registration import absent, all_there, differentiable_op, given, graph_op, where_given
from vlmamba.ops.selective_scan import chunked, native
from vlmamba.ops.selective_scan.chunked import INTERVAL

Tensor = torch.Tensor


def _triton() -> ModuleType:
    from vlmamba.ops.selective_scan import triton

    return triton


_BACKENDS = {"triton": _triton, "native": lambda: native, "torch": lambda: chunked}


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    paths: Tensor | None,
    seq_idx: Tensor | None,
    state: Tensor | None,
    softplus: bool,
    merge: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backend = implementation(_BACKENDS, A)()
    results = backend.forward(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, state, softplus, merge, keep)
    return all_there(results, A)


def _fake(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, state, softplus, merge, keep):
    batch, _, length, channels = x.shape
    directions, _, size = A.shape
    steps = length if paths is None else paths.shape[1]
    out = x.new_empty(batch, 1 if merge else directions, length, channels)
    y = A.new_empty(out.shape) if keep and z is not None else absent(A)
    chunks = (steps + INTERVAL - 1) // INTERVAL
    states = A.new_empty(batch, directions, chunks, size, channels) if keep else absent(A)
    return out, A.new_empty(batch, directions, channels, size), y, states


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
    paths: Tensor | None,
    seq_idx: Tensor | None,
    y: Tensor | None,
    states: Tensor,
    softplus: bool,
    merge: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    backend = implementation(_BACKENDS, A)()
    operands = (x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, y, states)
    return all_there(backend.backward(dout, dlast, *operands, softplus, merge), A)


def _backward_fake(dout, dlast, x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, y, states, softplus, merge):
    gradients = [absent(A) if v is None else v.new_empty(v.shape) for v in (x, dt, A, B, C, D, z, dt_bias)]
    return (*gradients, A.new_empty(x.shape[0], *A.shape))


_backward_op = graph_op("selective_scan_backward", _backward_function, _backward_fake)


def _setup_context(ctx, inputs, output):
    *operands, state, softplus, merge, _ = inputs
    _, _, y, states = output
    ctx.save_for_backward(*operands, given(y), states)
    ctx.softplus, ctx.merge, ctx.has_state = softplus, merge, state is not None
    ctx.mark_non_differentiable(y, states)
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, dlast, *_):
    saved = ctx.saved_tensors  # once: checkpointing makes them again each time
    if dout is None:
        x, _, A, *_ = saved
        dout = x.new_zeros(()).expand(x.shape[0], 1 if ctx.merge else A.shape[0], *x.shape[2:])
    *gradients, dstate = _backward_op(dout, dlast, *saved, ctx.softplus, ctx.merge)
    dstate = dstate if ctx.has_state else None
    return *where_given(gradients, saved), None, None, dstate, None, None, None


selective_scan_op = differentiable_op("selective_scan", _forward, _fake, _setup_context, _backward)
