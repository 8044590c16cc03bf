# SPDX-License-Identifier: Apache-2.0
"""The selective scan on the compiled CPU kernel (`vlmamba/ops/native/selective_scan.cpp`), float32.

The formula stands in `reference.py`. Rows are read and written in place through the path table; operands may
have any strides as long as the last dimension is contiguous. One state per 64 steps is kept for backward.
"""

import ctypes

import torch
from torch.autograd.function import once_differentiable

from vlmamba.ops.native import Operand, Scan, library


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied only if its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _operand(tensor: torch.Tensor) -> Operand:
    return Operand(tensor.data_ptr(), tensor.stride()[:3])


def _call(x, dt, A, B, C, D, dt_bias, paths, seq_idx, softplus: bool) -> Scan:
    """The fields that forward and backward share; the caller keeps the tensors alive."""
    batch, num_paths, length, channels = x.shape
    call = Scan(batch=batch, paths=num_paths, length=length, channels=channels, states=A.shape[-1])
    call.steps = length if paths is None else paths.shape[1]
    call.threads = torch.get_num_threads()
    call.softplus = softplus
    call.x, call.dt, call.B, call.C = (_operand(v) for v in (x, dt, B, C))
    _set(call, A=A, D=D, dt_bias=dt_bias, rows=paths, sequence=seq_idx)
    return call


def _set(call: Scan, **tensors: torch.Tensor | None) -> None:
    for name, tensor in tensors.items():
        setattr(call, name, None if tensor is None else tensor.data_ptr())


def _forward(inputs: tuple, state: torch.Tensor, keeps_checkpoints: bool) -> tuple[torch.Tensor, ...]:
    """y (B, K, L, D), last state (B, K, D, N) and the checkpoints (empty when not kept)."""
    call = _call(*inputs)
    x = inputs[0]
    y, last = x.new_empty(x.shape), torch.empty_like(state)
    size = library().vlmamba_scan_checkpoint_size(ctypes.byref(call)) if keeps_checkpoints else 0
    checkpoints = x.new_empty(size)
    _set(call, state=state, y=y, last=last, checkpoints=checkpoints if keeps_checkpoints else None)
    library().vlmamba_scan_forward(ctypes.byref(call))
    return y, last, checkpoints


class NativeScan(torch.autograd.Function):
    """(x, dt, A, B, C, D, dt_bias, paths, seq_idx, softplus, state) -> (y, last state)."""

    @staticmethod
    def forward(ctx, *args):
        *inputs, state = args
        y, last, checkpoints = _forward(inputs, state, True)
        ctx.save_for_backward(*inputs[:-1], checkpoints)
        ctx.softplus = inputs[-1]
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        *inputs, checkpoints = ctx.saved_tensors
        x, dt, A, B, C, D, dt_bias, paths, seq_idx = inputs
        call = _call(*inputs, ctx.softplus)
        dy = _rows(x.new_zeros(()).expand(x.shape) if dy is None else dy)
        dlast = None if dlast is None else dlast.contiguous()
        call.dy = _operand(dy)
        names = ("dx", "ddt", "dA", "dB", "dC", "dD", "dbias")
        shapes = (x.shape, x.shape, A.shape, B.shape, C.shape, (A.shape[:2]), (A.shape[:2]))
        grads = {name: x.new_empty(shape) for name, shape in zip(names, shapes, strict=True)}
        grads["dstate"] = x.new_empty(x.shape[0], *A.shape)
        _set(call, checkpoints=checkpoints, dlast=dlast, **grads)
        library().vlmamba_scan_backward(ctypes.byref(call))
        dx, ddt, dA, dB, dC, dD, dbias, dstate = grads.values()
        dD, dbias = None if D is None else dD, None if dt_bias is None else dbias
        return dx, ddt, dA, dB, dC, dD, dbias, None, None, None, dstate


def selective_scan_native(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    paths: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    state: torch.Tensor,
    dt_softplus: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments and results as `selective_scan_reference`, for float32 tensors on the CPU."""
    x, dt, B, C = (_rows(v) for v in (x, dt, B, C))
    A, D, dt_bias, state = (v if v is None else v.contiguous() for v in (A, D, dt_bias, state))
    paths, seq_idx = (v if v is None else v.to(torch.int32).contiguous() for v in (paths, seq_idx))
    inputs = (x, dt, A, B, C, D, dt_bias, paths, seq_idx, dt_softplus)
    differentiable = (x, dt, A, B, C, D, dt_bias, state)
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in differentiable):
        return NativeScan.apply(*inputs, state)
    return _forward(inputs, state, False)[:2]
