# SPDX-License-Identifier: Apache-2.0
"""A linear map whose weights may be int8; fast for the few rows of generation, where memory is the limit."""

import torch

from vlmamba.ops.backend import implementation
from vlmamba.ops.checks import check_floating, check_shape
from vlmamba.ops.linear.dequantizing import linear_torch
from vlmamba.ops.linear.native import linear_native
from vlmamba.ops.linear.quantized import GROUP, dequantized, quantized
from vlmamba.ops.linear.reference import linear_reference

__all__ = ["GROUP", "dequantized", "linear", "quantized"]

_IMPLEMENTATIONS = {"native": linear_native, "torch": linear_torch, "reference": linear_reference}


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = x W^T + b.

    Args:
        x: `[..., inputs]`.
        weight: `[outputs, inputs]` in x's dtype; or int8 `[outputs, groups, 64]` from `quantized`, with its scale.
        bias: `[outputs]`.
        scale: `[outputs, groups]`, of int8 weights; they get no gradient.

    Returns:
        `[..., outputs]` in x's dtype.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.

    Example:
        >>> small, scale = quantized(weight)
        >>> y = linear(x, small, bias, scale)
    """
    if scale is None:
        check_shape("linear", "weight", weight, (weight.shape[0], x.shape[-1]))
        check_floating("linear", x.device, x=x, weight=weight, bias=bias)
    else:
        if weight.dtype != torch.int8:
            raise ValueError(f"linear: weight has dtype {weight.dtype}, expected torch.int8 with a scale")
        groups = -(-x.shape[-1] // GROUP)
        check_shape("linear", "weight", weight, (weight.shape[0], groups, GROUP))
        check_shape("linear", "scale", scale, (weight.shape[0], groups))
        check_floating("linear", x.device, x=x, scale=scale, bias=bias)
    if bias is not None:
        check_shape("linear", "bias", bias, (weight.shape[0],))
    if torch.compiler.is_compiling():  # a graph is better off with PyTorch's operators
        return linear_torch(x, weight, bias, scale)
    return implementation(_IMPLEMENTATIONS, x)(x, weight, bias, scale)
