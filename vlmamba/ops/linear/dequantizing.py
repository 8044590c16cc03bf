# SPDX-License-Identifier: Apache-2.0
"""The linear map in plain PyTorch: int8 weights are widened for the call, and once more for its gradient."""

import torch
import torch.nn.functional as F

from vlmamba.ops.linear.quantized import dequantized


class _Dequantizing(torch.autograd.Function):
    """(x, int8 weight, scale) -> x W^T, keeping the int8 weight only."""

    @staticmethod
    def forward(ctx, x, weight, scale):
        ctx.save_for_backward(weight, scale)
        ctx.inputs = x.shape[-1]
        return F.linear(x, dequantized(weight, scale, x.shape[-1], x.dtype))

    @staticmethod
    def backward(ctx, dy):
        weight, scale = ctx.saved_tensors
        return dy @ dequantized(weight, scale, ctx.inputs, dy.dtype), None, None


def linear_torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor:
    """Same arguments and results as `linear_reference`."""
    if scale is None:
        return F.linear(x, weight, bias)
    y = _Dequantizing.apply(x, weight, scale)
    return y if bias is None else y + bias.to(y.dtype)
