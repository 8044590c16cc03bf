# SPDX-License-Identifier: Apache-2.0
"""What a vision model costs before any clock runs: its multiply-adds, and what training keeps of a forward pass."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import vlmamba.ops  # noqa: F401  registers the ops

Shape = tuple[int, ...]


def _selective_scan(
    x: Shape, dt: Shape, A: Shape, B: Shape, C: Shape, D: Shape | None, z: Shape | None, dt_bias, paths, *_, **__
) -> int:
    """The convention of VMamba's figures: 9 operations for every step, channel and state, one more for D and for z."""
    directions, channels, size = A
    steps = x[2] if paths is None else paths[1]
    each = 9 * size + (D is not None)
    return x[0] * directions * steps * channels * each + (0 if z is None else prod(z))


def _causal_conv1d(x: Shape, weight: Shape, bias, paths, *_, **__) -> int:
    directions, channels, taps = weight
    return 2 * x[0] * directions * (x[2] if paths is None else paths[1]) * channels * taps


FORMULAS = {
    torch.ops.vlmamba.selective_scan: _selective_scan,
    torch.ops.vlmamba.causal_conv1d: _causal_conv1d,
}


def multiply_adds(build: Callable[[], torch.nn.Module], side: int) -> int:
    """Half the floating-point operations of one image: of products of matrices, convolutions, attention and scans.

    Norms, activations and sums are not counted, as is usual. Only shapes are computed with.

    Args:
        build: makes the model.
        side: of the square image.
    """
    with torch.device("meta"):
        model, image = build().eval().requires_grad_(False), torch.empty(1, 3, side, side)
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            model(image)
    return counter.get_total_flops() // 2


def kept_for_backward(model: torch.nn.Module, image: torch.Tensor) -> int:
    """Bytes that a training forward pass holds until backward: each saved tensor's memory once, parameters not."""
    held = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), image)}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # what an op gave, held by the op itself, would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, _unchanged):
        output: Any = model.train()(image)
    total = sum(saved.values())
    del output  # what was saved lived until here, so no address was used twice
    return total


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
