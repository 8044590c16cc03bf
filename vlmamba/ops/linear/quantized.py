# SPDX-License-Identifier: Apache-2.0
"""Weights in 8 bits: every 64 neighbouring inputs of an output share a scale, their largest magnitude / 127."""

import torch

GROUP = 64


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 weights `[outputs, groups, 64]`, zero behind the last input, and float32 scales `[outputs, groups]`.

    Args:
        weight: floating point `[outputs, inputs]`. The largest error of a weight is 1/254 of its group's largest one.

    Raises:
        ValueError: the weight is no matrix of finite numbers.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        kind = f"{weight.dtype} {tuple(weight.shape)}"
        raise ValueError(f"quantized: weight is {kind}, expected floating point [outputs, inputs]")
    if not weight.isfinite().all():
        raise ValueError("quantized: weight holds numbers that are not finite")
    outputs, inputs = weight.shape
    groups = -(-inputs // GROUP)
    padded = torch.nn.functional.pad(weight.detach().float(), (0, groups * GROUP - inputs))
    padded = padded.view(outputs, groups, GROUP)
    scale = padded.abs().amax(-1) / 127
    steps = padded / scale.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return steps.round().to(torch.int8), scale


def dequantized(weight: torch.Tensor, scale: torch.Tensor, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix `[outputs, inputs]` that int8 weights and their scales stand for."""
    wide = torch.promote_types(dtype, torch.float32)
    matrix = (weight.to(wide) * scale.to(wide).unsqueeze(-1)).flatten(1)
    return matrix[:, :inputs].to(dtype)
