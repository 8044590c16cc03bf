# SPDX-License-Identifier: Apache-2.0
"""The linear map of a few rows on the compiled CPU kernel (`vlmamba/ops/native/linear.cpp`), without gradients.

It reads the weights once, at the speed of memory; many rows are PyTorch's business, whose matrix products use every
weight often. Sums are float32. On CPUs with AVX512-VNNI, int8 weights meet x in 16 bits, in units of the largest
magnitude of its 64 neighbours / 32512: an error of y some hundred times smaller than that of the int8 weights.
"""

import torch

from vlmamba.ops.linear.dequantizing import linear_torch
from vlmamba.ops.native import TYPES
from vlmamba.ops.native.step import Linear, run_linear
from vlmamba.ops.registration import in_graph

# up to so many rows the kernel was clearly the faster one, by the weights' dtype: 768 x 3072, one core with AVX-512
FEW_ROWS = {torch.float32: 16, torch.bfloat16: 8, torch.float16: 8, torch.int8: 128}


def linear_native(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor:
    """Same arguments and results as `linear_reference`; what the kernel does not serve goes to PyTorch."""
    if not serves(x, weight, bias, scale):
        return linear_torch(x, weight, bias, scale)
    inputs = x.shape[-1]
    call = Linear.of(weight, bias, scale, inputs)
    y = run_linear(call, x.reshape(-1, inputs).to(torch.float32).contiguous())
    return y.view(*x.shape[:-1], call.outputs).to(x.dtype)


def serves(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None) -> bool:
    """Whether the kernel takes this call: few rows, no gradient, no graph, no autocast, contiguous weights."""
    return (
        0 < x.numel() <= FEW_ROWS.get(weight.dtype, 0) * x.shape[-1]
        and x.dtype in _SINGLE
        and (scale.dtype == torch.float32 and scale.is_contiguous() if scale is not None else weight.dtype == x.dtype)
        and type(weight) in (torch.Tensor, torch.nn.Parameter)  # others are quantized or sharded
        and weight.is_contiguous()
        and (bias is None or (bias.dtype in _SINGLE and bias.is_contiguous()))
        and not in_graph(x, weight, bias)
        and not torch.is_autocast_enabled("cpu")
    )


_SINGLE = set(TYPES) - {torch.float64}
