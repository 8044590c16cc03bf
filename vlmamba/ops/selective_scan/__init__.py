# SPDX-License-Identifier: Apache-2.0
"""The selective scan: the one op that every model of this library runs on."""

import torch
import torch.nn.functional as F

from vlmamba.ops.backend import wants_definition
from vlmamba.ops.checks import check_floating, check_integer, check_sequences, check_shape
from vlmamba.ops.numerics import compute_dtype, readable
from vlmamba.ops.paths import check_paths, has_padded_steps
from vlmamba.ops.selective_scan.reference import selective_scan_reference
from vlmamba.ops.selective_scan.register import selective_scan_op

_OP = "selective_scan"


def selective_scan(
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
    paths: torch.Tensor | None = None,
    merge: bool = True,
    seq_idx: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    return_final_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Scan a batch of sequences, along one order or along several at once.

    The formula stands in `vlmamba/ops/selective_scan/reference.py`. B is the batch, L the rows
    (positions), K the directions, D the channels, N the state size. With K directions the parameters carry
    a leading K (`A` is `[K, D, N]`); without, there is one direction (`A` is `[D, N]`) and no K anywhere.

    Args:
        x: `[B, L, D]` (read by every direction) or `[B, K, L, D]`.
        dt: time steps before bias and softplus, `[B, L, D]` or `[B, K, L, D]`.
        A: state matrix, negative, `[D, N]` or `[K, D, N]`.
        B: input matrix, `[B, L, N]` or `[B, K, L, N]`.
        C: output matrix, shaped as `B`.
        D: skip weight, `[D]` or `[K, D]`.
        z: gate, `[B, L, D]`, or `[B, K, L, D]` with merge=False: the result is multiplied by silu(z).
        dt_bias: added to `dt`, `[D]` or `[K, D]`.
        dt_softplus: apply softplus to dt + bias.
        paths: int32 or int64 `[K, T]` (or `[T]` without K): direction k visits row `paths[k, t]` at step t
            and leaves its output at that row; -1 is a padded step. None visits 0..L-1. All operands and
            the result stay in rows: nothing is permuted by the caller.
        merge: sum the directions into `[B, L, D]`; False gives `[B, K, L, D]`.
        seq_idx: int `[B, L]`, number of the packed sequence of each row: the state restarts where it changes.
        initial_state: `[B, D, N]` or `[B, K, D, N]`; zeros when None.
        return_final_state: also return the state after the last step.

    Returns:
        y in x's dtype, `[B, L, D]` (rows no path visits are 0); with `return_final_state` also the last
        state in float32 (float64 when an input is), shaped as `initial_state`.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.

    Example:
        >>> y = selective_scan(x, dt, A, B, C, D, z, paths=torch.stack([forward, backward]))
    """
    check_floating(_OP, None, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_state=initial_state)
    several = A.dim() == 3
    if not several:
        if A.dim() != 2:
            raise ValueError(f"{_OP}: A has shape {tuple(A.shape)}, expected [D, N] or [K, D, N]")
        A, D, dt_bias = (v if v is None else v.unsqueeze(0) for v in (A, D, dt_bias))
        initial_state = None if initial_state is None else initial_state.unsqueeze(1)
        paths = paths.unsqueeze(0) if paths is not None and paths.dim() == 1 else paths
    x, dt, B, C = (_with_directions(n, v, A.shape[0]) for n, v in (("x", x), ("dt", dt), ("B", B), ("C", C)))
    _check(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, initial_state, merge)

    dtype = compute_dtype(x, dt, A, B, C, initial_state)
    rounded = x.dtype
    if not A.is_complex():  # what is complex goes to the definition as it is
        x, dt, B, C, z = (v if v is None else readable(v, dtype) for v in (x, dt, B, C, z))
    A, D, dt_bias, initial_state = (v if v is None else _widened(v, dtype) for v in (A, D, dt_bias, initial_state))
    paths, seq_idx = (v if v is None else v.to(torch.int32) for v in (paths, seq_idx))
    gate = z if z is None or z.dim() == 4 else z.unsqueeze(1)
    one = merge or A.shape[0] == 1  # one result, which the kernel can gate
    operands = (x, dt, A, B, C, D, gate if one else None, dt_bias, paths, seq_idx, initial_state, dt_softplus, one)
    y, state = _defined(*operands) if wants_definition(A) else selective_scan_op(*operands)[:2]
    if gate is not None and not one:
        y = y * F.silu(gate.to(dtype))
    y = (y.squeeze(1) if merge else y).to(rounded)
    if not return_final_state:
        return y
    return y, state if several else state.squeeze(1)


def _widened(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)


def _defined(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, state, softplus, merge):
    """The op by its definition, in A's precision; autograd differentiates it."""
    dtype = compute_dtype(A)
    x, dt, B, C = (_widened(v.expand(-1, A.shape[0], -1, -1), dtype) for v in (x, dt, B, C))
    state = A.new_zeros(x.shape[0], *A.shape) if state is None else state
    # autocast would move the products to half precision: the state is float32 or wider
    with torch.autocast(x.device.type, enabled=False):
        operands = (x, dt, A, B.to(A.dtype), C.to(A.dtype), D, dt_bias, paths, seq_idx, state.to(A.dtype))
        y, state = selective_scan_reference(*operands, softplus)
        y = y.sum(1, keepdim=True) if merge else y
        return y if z is None else y * F.silu(z.to(dtype)), state


def _with_directions(name: str, tensor: torch.Tensor, num_paths: int) -> torch.Tensor:
    """(B, L, X) -> (B, 1, L, X), shared by all directions; (B, K, L, X) stays."""
    if tensor.dim() == 3:
        return tensor.unsqueeze(1)
    if tensor.dim() == 4 and tensor.shape[1] == num_paths:
        return tensor
    raise ValueError(
        f"{_OP}: {name} has shape {tuple(tensor.shape)}, expected [B, L, X] or [B, {num_paths}, L, X] as A has "
        f"{num_paths} direction(s)"
    )


def _check(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, initial_state, merge) -> None:
    (batch, _, length, channels), (num_paths, _, states) = x.shape, A.shape
    check_integer(_OP, x.device, paths=paths, seq_idx=seq_idx)
    check_shape(_OP, "A", A, (num_paths, channels, states))
    check_shape(_OP, "dt", dt, (batch, dt.shape[1], length, channels))
    for name, matrix in (("B", B), ("C", C)):
        check_shape(_OP, name, matrix, (batch, matrix.shape[1], length, states))
    for name, vector in (("D", D), ("dt_bias", dt_bias)):
        if vector is not None:
            check_shape(_OP, name, vector, (num_paths, channels))
    if z is not None:
        each = z.dim() == 4 and not merge
        check_shape(_OP, "z", z, (batch, num_paths, length, channels) if each else (batch, length, channels))
    if initial_state is not None:
        check_shape(_OP, "initial_state", initial_state, (batch, num_paths, channels, states))
    if paths is not None:
        check_paths(_OP, paths, num_paths, length)
    if seq_idx is not None:
        check_sequences(_OP, seq_idx, (batch, length))
        if paths is not None and has_padded_steps(paths, length):
            raise ValueError(f"{_OP}: paths with padded steps (-1) and seq_idx exclude each other")
