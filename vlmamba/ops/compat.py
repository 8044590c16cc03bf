# SPDX-License-Identifier: Apache-2.0
"""Drop-ins: the names, argument order and layouts of `mamba_ssm` and `causal_conv1d`, on this library's kernel.

Existing code switches by its import:

    from vlmamba.ops.compat import selective_scan_fn, selective_state_update, causal_conv1d_fn, causal_conv1d_update
    from vlmamba.ops.compat import mamba_chunk_scan_combined

Layouts are theirs: channels before length, but in Mamba-2's scan. Gradients flow through the last state too
(mamba_ssm's CUDA kernel stops them there).
"""

import math

import torch

from vlmamba.ops import causal_conv1d, selective_scan
from vlmamba.ops import causal_conv1d_update as _conv_update
from vlmamba.ops import selective_state_update as _state_update
from vlmamba.ops.checks import check_shape
from vlmamba.ops.ssd import CHUNK_SIZE, ssd_scan, ssd_update

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_chunk_scan_combined",
    "selective_scan_fn",
    "selective_state_update",
]


def selective_scan_fn(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`mamba_ssm.ops.selective_scan_interface.selective_scan_fn`.

    Args:
        u, delta, z: `[B, D, L]`. D, delta_bias: `[D]`.
        A: `[D, N]`, real or complex.
        B, C: `[B, N, L]`, grouped `[B, G, N, L]` (channel d reads group d // (D / G)) or constant `[D, N]`; with a
            complex A, varying ones are real tensors whose last dimension `2 L` interleaves real and imaginary part.

    Returns:
        `[B, D, L]` in u's dtype, and with `return_last_state` the last state `[B, D, N]`.

    Raises:
        ValueError: shapes do not fit; the message names the argument.
    """
    if u.dim() != 3:
        raise ValueError(f"selective_scan_fn: u has shape {tuple(u.shape)}, expected [B, D, L]")
    batch, channels, length = u.shape
    B, C = (_grouped(n, m, u, A.is_complex()) for n, m in (("B", B), ("C", C)))
    groups = math.lcm(B.shape[1], C.shape[1])
    if channels % groups:
        raise ValueError(
            f"selective_scan_fn: B has {B.shape[1]} and C {C.shape[1]} groups, expected divisors of {channels} channels"
        )
    B, C = (m.repeat_interleave(groups // m.shape[1], dim=1) for m in (B, C))

    def split(v: torch.Tensor | None) -> torch.Tensor | None:
        """`[D, ...]` -> `[G, D / G, ...]`: groups are directions that share no channel."""
        return None if v is None else v.unflatten(0, (groups, -1))

    def split_rows(v: torch.Tensor) -> torch.Tensor:
        return v.unflatten(1, (groups, -1)).transpose(2, 3)  # (B, G, L, D / G)

    y, state = selective_scan(
        split_rows(u),
        split_rows(delta),
        split(A),
        B.transpose(2, 3),
        C.transpose(2, 3),
        split(D),
        None if z is None else split_rows(z),
        split(delta_bias),
        dt_softplus=delta_softplus,
        merge=False,
        return_final_state=True,
    )
    y = y.transpose(2, 3).reshape(batch, channels, length)
    return (y, state.flatten(1, 2)) if return_last_state else y


def _grouped(name: str, matrix: torch.Tensor, u: torch.Tensor, is_complex: bool) -> torch.Tensor:
    """Any accepted form of B or C -> `[B, G, N, L]`; a constant one has a group for each channel."""
    if matrix.dim() == 2:
        return matrix[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    matrix = matrix.unsqueeze(1) if matrix.dim() == 3 else matrix
    if matrix.dim() != 4:
        raise ValueError(f"selective_scan_fn: {name} has {matrix.dim()} dimensions, expected 2, 3 or 4")
    if is_complex and not matrix.is_complex():
        matrix = torch.view_as_complex(matrix.unflatten(-1, (-1, 2)).contiguous())
    return matrix


def selective_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
) -> torch.Tensor:
    """`mamba_ssm.ops.triton.selective_state_update.selective_state_update`: updates `state` in place.

    Args:
        state: `[B, D, N]`, or with heads `[B, H, P, N]`.
        x, dt, z: `[B, D]` or `[B, H, P]`. A: `[D, N]` or `[H, P, N]`. D, dt_bias: `[D]` or `[H, P]`.
        B, C: `[B, N]`, or with heads `[B, G, N]` (head h reads group h // (H / G)).

    Returns:
        As x.

    Raises:
        ValueError: shapes do not fit; the message names the argument.
    """
    if state.dim() == 4:
        y, new = _heads_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    else:
        y, new = _state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus=dt_softplus)
    state.copy_(new)
    return y


def _heads_update(state, x, dt, A, B, C, D, z, dt_bias, softplus) -> tuple[torch.Tensor, torch.Tensor]:
    op, heads, groups = "selective_state_update", state.shape[1], B.shape[1]
    for name, tensor, shape in (
        ("x", x, state.shape[:3]),
        ("dt", dt, state.shape[:3]),
        ("A", A, state.shape[1:]),
        ("D", D, state.shape[1:3]),
        ("z", z, state.shape[:3]),
        ("dt_bias", dt_bias, state.shape[1:3]),
    ):
        if tensor is not None:
            check_shape(op, name, tensor, shape)
    for name, matrix in (("B", B), ("C", C)):
        check_shape(op, name, matrix, (state.shape[0], groups, state.shape[3]))
    if not groups or heads % groups:
        raise ValueError(f"{op}: B has {groups} groups, expected a divisor of {heads} heads")
    if A.stride()[1:] == (0, 0) and dt.stride(2) == 0 and (dt_bias is None or dt_bias.stride(1) == 0):
        # Mamba-2: one decay a head, expanded
        bias = None if dt_bias is None else dt_bias[:, 0]
        return ssd_update(
            state, x, dt[..., 0], A[:, 0, 0], B, C, D, z, bias, dt_softplus=softplus, dt_limit=(-math.inf, math.inf)
        )

    def split(tensor: torch.Tensor | None, dim: int) -> list[torch.Tensor | None]:
        """The channels of each group: (..., H, P, ...) -> G times (..., H / G * P, ...)."""
        if tensor is None:
            return [None] * groups
        return [part.flatten(dim, dim + 1) for part in tensor.chunk(groups, dim)]

    parts = (split(state, 1), split(x, 1), split(dt, 1), split(A, 0), B.unbind(1), C.unbind(1))
    options = (split(D, 0), split(z, 1), split(dt_bias, 0))
    results = [_state_update(*one, dt_softplus=softplus) for one in zip(*parts, *options, strict=True)]
    y, new = (torch.cat(values, dim=1) for values in zip(*results, strict=True))
    return y.view_as(x), new.view_as(state)


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """`mamba_ssm.ops.triton.ssd_combined.mamba_chunk_scan_combined`.

    Args:
        x, z: `[B, L, H, P]`. dt: `[B, L, H]`. A, dt_bias: `[H]`. B, C: `[B, L, G, N]`. D: `[H]` or `[H, P]`.
        chunk_size: changes the speed, not the result; no more than our own is used.
        initial_states: `[B, H, P, N]`. seq_idx: `[B, L]`, the state restarts where it changes.
        cu_seqlens: int `[S + 1]`, where each of S packed sequences begins and the last ends, for
            `return_varlen_states`; B is then 1. As in mamba_ssm, `seq_idx` keeps the sequences apart in the result.

    Returns:
        `[B, L, H, P]`; with `return_final_states` also the last state `[B, H, P, N]`; with `return_varlen_states` also
        the state `[S, H, P, N]` after each packed sequence (`initial_states` continue the first).

    Raises:
        ValueError: shapes do not fit; the message names the argument.
    """
    op = "mamba_chunk_scan_combined"
    if return_varlen_states and cu_seqlens is None:
        raise ValueError(f"{op}: cu_seqlens is None, expected the sequences' bounds with return_varlen_states")
    options = {"chunk_size": min(chunk_size, CHUNK_SIZE), "dt_softplus": dt_softplus, "dt_limit": dt_limit}
    y, last = ssd_scan(
        x, dt, A, B, C, D, z, dt_bias, seq_idx=seq_idx, initial_state=initial_states, return_final_state=True, **options
    )
    results = (y, last) if return_final_states else (y,)
    if return_varlen_states:
        bounds = cu_seqlens.tolist()
        if x.shape[0] != 1 or bounds[0] != 0 or bounds[-1] != x.shape[1] or sorted(bounds) != bounds:
            raise ValueError(
                f"{op}: cu_seqlens is {bounds} for x {tuple(x.shape)}, expected 0..{x.shape[1]} and batch 1"
            )
        states = []
        for start, stop in zip(bounds, bounds[1:], strict=False):
            part = (v[:, start:stop] for v in (x, dt))
            matrices = (v[:, start:stop] for v in (B, C))
            first = initial_states if start == 0 else None
            _, state = ssd_scan(
                *part, A, *matrices, dt_bias=dt_bias, initial_state=first, return_final_state=True, **options
            )
            states.append(state)
        results = (*results, torch.cat(states))
    return results if len(results) > 1 else y


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`causal_conv1d.causal_conv1d_fn`.

    Args:
        x: `[B, D, L]`. weight: `[D, W]`. bias: `[D]`. seq_idx: `[B, L]`. initial_states: `[B, D, W - 1]`.

    Returns:
        `[B, D, L]`, and with `return_final_states` the last `[B, D, W - 1]` inputs.
    """
    y, state = causal_conv1d(
        x.transpose(1, 2),
        weight,
        bias,
        activation=activation,
        seq_idx=seq_idx,
        initial_state=initial_states,
        return_final_state=True,
    )
    y = y.transpose(1, 2)
    if final_states_out is not None:
        state = final_states_out.copy_(state)
    return (y, state) if return_final_states else y


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """`causal_conv1d.causal_conv1d_update`: updates `conv_state` (`[B, D, >= W - 1]`, newest last) in place.

    Args:
        x: `[B, D]` or `[B, D, L]`.

    Returns:
        As x.
    """
    steps = x.unsqueeze(-1) if x.dim() == 2 else x
    taps = weight.shape[1]
    out = []
    for t in range(steps.shape[-1]):
        recent = conv_state[..., conv_state.shape[-1] - (taps - 1) :]
        y, _ = _conv_update(steps[..., t], recent, weight, bias, activation=activation)
        conv_state.copy_(torch.cat([conv_state[..., 1:], steps[..., t : t + 1].to(conv_state.dtype)], dim=-1))
        out.append(y)
    y = torch.stack(out, dim=-1)
    return y.squeeze(-1) if x.dim() == 2 else y
