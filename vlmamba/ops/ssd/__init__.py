# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan (state space duality): one decay a head, so that chunks of it are matrix products."""

import math

import torch

from vlmamba.ops.backend import implementation, wants_definition
from vlmamba.ops.checks import check_floating, check_integer, check_sequences, check_shape
from vlmamba.ops.numerics import compute_dtype, readable
from vlmamba.ops.registration import in_graph
from vlmamba.ops.ssd.reference import ssd_reference
from vlmamba.ops.ssd.register import BACKENDS, ssd_scan_op

CHUNK_SIZE = 64


def ssd_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
    dt_softplus: bool = True,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    seq_idx: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    return_final_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Scan a batch of sequences with one decay a head.

    The formula stands in `vlmamba/ops/ssd/reference.py`. B is the batch, L the steps, H the heads, P their size, G the
    groups that share an input and an output matrix (head h reads group h // (H / G)), N the state size.

    Args:
        x: `[B, L, H, P]`.
        dt: time steps before bias and softplus, `[B, L, H]`.
        A: decay, negative, `[H]`.
        B, C: input and output matrix, `[B, L, G, N]`.
        D: skip weight, `[H]` or `[H, P]`.
        z: gate, shaped as x: the result is multiplied by silu(z).
        dt_bias: added to dt, `[H]`.
        chunk_size: steps that are worked on at once, 64 at most; changes the speed, not the result.
        dt_softplus: apply softplus to dt + bias.
        dt_limit: the least and the largest time step, after softplus.
        seq_idx: int `[B, L]`, number of the packed sequence of each step: the state restarts where it changes.
        initial_state: `[B, H, P, N]`; zeros when None.
        return_final_state: also return the state after the last step.

    Returns:
        y `[B, L, H, P]` in x's dtype; with `return_final_state` also the last state `[B, H, P, N]` in float32 (float64
        when an input is).

    Raises:
        ValueError: a shape, dtype, device or number does not fit; the message names the argument.

    Example:
        >>> y, state = ssd_scan(x, dt, -torch.exp(A_log), B, C, D, dt_bias=dt_bias, return_final_state=True)
    """
    op = "ssd_scan"
    _check_real(op, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_state=initial_state)
    if x.dim() != 4:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, expected [B, L, H, P]")
    batch, length, heads, size = x.shape
    groups, states = _check_matrices(op, B, C, (batch, length), heads)
    low, high = _check_limits(op, dt_limit)
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"{op}: chunk_size is {chunk_size!r}, expected a positive int")
    check_integer(op, x.device, seq_idx=seq_idx)
    D = _by_channel(D, (heads, size))
    for name, tensor, shape in (
        ("dt", dt, (batch, length, heads)),
        ("A", A, (heads,)),
        ("D", D, (heads, size)),
        ("z", z, x.shape),
        ("dt_bias", dt_bias, (heads,)),
        ("initial_state", initial_state, (batch, heads, size, states)),
    ):
        if tensor is not None:
            check_shape(op, name, tensor, shape)

    if seq_idx is not None:
        check_sequences(op, seq_idx, (batch, length))
    dtype = compute_dtype(x, dt, A, B, C, initial_state)
    rounded = x.dtype
    x, dt, B, C, z = (v if v is None else readable(v, dtype) for v in (x, dt, B, C, z))
    A, D, dt_bias, state = (v if v is None else v.to(dtype) for v in (A, D, dt_bias, initial_state))
    seq_idx = None if seq_idx is None else seq_idx.to(torch.int32)
    if wants_definition(A):
        y, state = _defined(x, dt, A, B, C, D, z, dt_bias, seq_idx, state, dt_softplus, low, high)
    else:
        operands = (x, dt, A, B, C, D, z, dt_bias, seq_idx, state)
        y, state = ssd_scan_op(*operands, min(chunk_size, CHUNK_SIZE), dt_softplus, low, high)[:2]
    y = y.to(rounded)
    return (y, state) if return_final_state else y


def ssd_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    *,
    dt_softplus: bool = True,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advance the state by one token: `ssd_scan` for L = 1, without its overhead.

    Args:
        state: `[B, H, P, N]`, not modified.
        x: `[B, H, P]`. dt: `[B, H]`. A: `[H]`. B, C: `[B, G, N]`. D: `[H]` or `[H, P]`. z: `[B, H, P]`. dt_bias: `[H]`.
        dt_softplus: apply softplus to dt + bias.
        dt_limit: the least and the largest time step, after softplus.

    Returns:
        y `[B, H, P]` in x's dtype and the new state `[B, H, P, N]` in float32 (float64 when an input is).

    Raises:
        ValueError: a shape, dtype, device or number does not fit; the message names the argument.
    """
    op = "ssd_update"
    _check_real(op, state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    if x.dim() != 3:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, expected [B, H, P]")
    batch, heads, size = x.shape
    groups, states = _check_matrices(op, B, C, (batch,), heads)
    low, high = _check_limits(op, dt_limit)
    D = _by_channel(D, (heads, size))
    for name, tensor, shape in (
        ("state", state, (batch, heads, size, states)),
        ("dt", dt, (batch, heads)),
        ("A", A, (heads,)),
        ("D", D, (heads, size)),
        ("z", z, x.shape),
        ("dt_bias", dt_bias, (heads,)),
    ):
        if tensor is not None:
            check_shape(op, name, tensor, shape)

    dtype = compute_dtype(state, x, dt, A, B, C)
    rounded = x.dtype
    x, dt, B, C, z = (v if v is None else readable(v, dtype) for v in (x, dt, B, C, z))
    A, D, dt_bias, state = (v if v is None else v.to(dtype) for v in (A, D, dt_bias, state))
    operands = (state, x, dt, A, B, C, D, z, dt_bias)
    backend = BACKENDS["torch"]() if in_graph(*operands) else implementation(BACKENDS, A)()
    y, state = backend.update(*operands, dt_softplus, low, high)
    return y.to(rounded), state


def _defined(x, dt, A, B, C, D, z, dt_bias, seq_idx, state, softplus, low, high):
    """The op by its definition, in A's precision; autograd differentiates it."""
    x, dt, B, C, z = (v if v is None else v.to(A.dtype) for v in (x, dt, B, C, z))
    if state is None:
        state = A.new_zeros(x.shape[0], *x.shape[2:], B.shape[3])
    with torch.autocast(x.device.type, enabled=False):
        return ssd_reference(x, dt, A, B, C, D, z, dt_bias, seq_idx, state, softplus, low, high)


def _by_channel(D: torch.Tensor | None, shape: tuple[int, int]) -> torch.Tensor | None:
    """`[H]` -> `[H, P]`; other shapes stay, for the check to name them."""
    return D.unsqueeze(-1).expand(shape) if D is not None and D.shape == shape[:1] else D


def _check_real(op: str, **tensors: torch.Tensor | None) -> None:
    check_floating(op, None, **tensors)
    for name, tensor in tensors.items():
        if tensor is not None and tensor.is_complex():
            raise ValueError(f"{op}: {name} has dtype {tensor.dtype}, expected a real one")


def _check_matrices(op: str, B: torch.Tensor, C: torch.Tensor, leading: tuple[int, ...], heads: int) -> tuple[int, int]:
    """Groups and state size of B, `[*leading, G, N]`, which C must have too."""
    if B.dim() != len(leading) + 2:
        raise ValueError(f"{op}: B has shape {tuple(B.shape)}, expected ({', '.join(map(str, leading))}, G, N)")
    groups, states = B.shape[-2:]
    for name, matrix in (("B", B), ("C", C)):
        check_shape(op, name, matrix, (*leading, groups, states))
    if not groups or heads % groups:
        raise ValueError(f"{op}: B has {groups} groups, expected a divisor of {heads} heads")
    return groups, states


def _check_limits(op: str, dt_limit: tuple[float, float]) -> tuple[float, float]:
    if len(dt_limit) != 2 or not dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"{op}: dt_limit is {dt_limit!r}, expected (least, largest)")
    return float(dt_limit[0]), float(dt_limit[1])
