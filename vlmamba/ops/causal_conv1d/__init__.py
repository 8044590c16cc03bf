# SPDX-License-Identifier: Apache-2.0
"""The short causal depthwise convolution in front of a selective scan, and its one-step form."""

import torch

from vlmamba.ops.backend import implementation, wants_definition
from vlmamba.ops.causal_conv1d.reference import causal_conv1d_reference
from vlmamba.ops.causal_conv1d.register import BACKENDS, causal_conv1d_op
from vlmamba.ops.checks import check_floating, check_integer, check_sequences, check_shape
from vlmamba.ops.numerics import compute_dtype, readable
from vlmamba.ops.paths import check_paths
from vlmamba.ops.registration import in_graph

_ACTIVATIONS = (None, "silu", "swish")


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    paths: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    return_final_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Depthwise convolution over the last W steps, along one order or along several at once.

    B is the batch, L the rows, K the directions, D the channels, W the taps. With K directions `weight` is
    `[K, D, W]` and the result `[B, K, L, D]`; without, `[D, W]` and `[B, L, D]`.

    Args:
        x: `[B, L, D]` (read by every direction) or `[B, K, L, D]`.
        weight: `[D, W]` or `[K, D, W]`, the newest step last.
        bias: `[D]` or `[K, D]`.
        activation: None or "silu".
        paths: int32 or int64 `[K, T]` (or `[T]`): the rows each direction visits, in order, as in
            `selective_scan`; -1 is a padded step (x = 0).
        seq_idx: int `[B, L]`, number of the packed sequence of each row: taps do not cross into another.
        initial_state: the W - 1 inputs before the first, oldest first, `[B, D, W - 1]` or `[B, K, D, W - 1]`.
        return_final_state: also return the last W - 1 inputs, in the same layout.

    Returns:
        y in x's dtype, every step's value at its row; with `return_final_state` also the state.

    Raises:
        ValueError: a shape, dtype, device or the activation does not fit; the message names the argument.
    """
    op = "causal_conv1d"
    _check_activation(op, activation)
    check_floating(op, None, x=x, weight=weight, bias=bias, initial_state=initial_state)
    several = weight.dim() == 3
    if not several:
        if weight.dim() != 2:
            raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}, expected [D, W] or [K, D, W]")
        weight, bias = weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0)
        initial_state = None if initial_state is None else initial_state.unsqueeze(1)
        paths = paths.unsqueeze(0) if paths is not None and paths.dim() == 1 else paths
    num_paths, channels, taps = weight.shape
    if not taps:
        raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}, expected at least one tap")
    if x.dim() not in (3, 4):
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, expected [B, L, D] or [B, K, L, D]")
    check_integer(op, x.device, paths=paths, seq_idx=seq_idx)
    x, directions = (x.unsqueeze(1), 1) if x.dim() == 3 else (x, num_paths)
    check_shape(op, "x", x, (x.shape[0], directions, x.shape[2], channels))
    if bias is not None:
        check_shape(op, "bias", bias, (num_paths, channels))
    if initial_state is not None:
        check_shape(op, "initial_state", initial_state, (x.shape[0], num_paths, channels, taps - 1))
    if seq_idx is not None:
        check_sequences(op, seq_idx, (x.shape[0], x.shape[2]))
    if paths is not None:
        check_paths(op, paths, num_paths, x.shape[2])

    dtype, rounded = compute_dtype(x, weight, bias), x.dtype
    x = readable(x, dtype)
    weight, bias, initial_state = (v if v is None else v.to(dtype) for v in (weight, bias, initial_state))
    paths, seq_idx = (v if v is None else v.to(torch.int32) for v in (paths, seq_idx))
    operands = (x, weight, bias, paths, seq_idx, initial_state, activation is not None)
    y, state = _defined(*operands) if wants_definition(weight) else causal_conv1d_op(*operands)
    y, state = y.to(rounded), state.to(rounded)
    y, state = (y, state) if several else (y.squeeze(1), state.squeeze(1))
    return (y, state) if return_final_state else y


def causal_conv1d_update(
    x: torch.Tensor,
    state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of `causal_conv1d`.

    Args:
        x: `[B, D]`. state: the W - 1 inputs before, oldest first, `[B, D, W - 1]`, not modified.
        weight: `[D, W]`. bias: `[D]`. activation: None or "silu".

    Returns:
        y `[B, D]` and the new state `[B, D, W - 1]`.

    Raises:
        ValueError: a shape, dtype, device or the activation does not fit; the message names the argument.
    """
    op = "causal_conv1d_update"
    _check_activation(op, activation)
    check_floating(op, x.device, x=x, state=state, weight=weight, bias=bias)
    if weight.dim() != 2 or x.dim() != 2:
        raise ValueError(
            f"{op}: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, expected [B, D] and [D, W]"
        )
    channels, taps = weight.shape
    check_shape(op, "x", x, (x.shape[0], channels))
    check_shape(op, "state", state, (x.shape[0], channels, taps - 1))
    if bias is not None:
        check_shape(op, "bias", bias, (channels,))
    dtype, rounded = compute_dtype(x, weight, bias), x.dtype
    wide, weight, bias, state = (v if v is None else v.to(dtype) for v in (x, weight, bias, state))
    backend = BACKENDS["torch"]() if in_graph(wide, state, weight, bias) else implementation(BACKENDS, wide)()
    y, state = backend.update(wide, state, weight, bias, activation is not None)
    return y.to(rounded), state.to(rounded)


def _defined(x, weight, bias, paths, seq_idx, state, silu):
    """The op by its definition, in the weight's precision; autograd differentiates it."""
    directions, channels, taps = weight.shape
    x = x.expand(-1, directions, -1, -1).to(weight.dtype)
    state = x.new_zeros(x.shape[0], directions, channels, taps - 1) if state is None else state
    return causal_conv1d_reference(x, weight, bias, paths, seq_idx, state, silu)


def _check_activation(op: str, activation: str | None) -> None:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}, expected None or 'silu'")
