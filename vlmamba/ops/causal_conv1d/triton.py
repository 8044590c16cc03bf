# SPDX-License-Identifier: Apache-2.0
"""The causal convolution on GPU kernels, in float32. The formula stands in `reference.py`, operands in `register.py`.

Rows are read in place through the path table. Every sum is taken in a fixed order, so results are the same in every
run: where a path visits a row twice, values are left in step order and added up afterwards.
"""

import torch

from vlmamba.ops.causal_conv1d.triton_kernels import (
    conv_bwd_inputs_kernel,
    conv_bwd_sums_kernel,
    conv_fwd_kernel,
    conv_update_kernel,
)
from vlmamba.ops.paths import path_facts
from vlmamba.ops.triton import launcher
from vlmamba.ops.triton.launcher import blocks, given, power_of_two, row_strides, strides
from vlmamba.ops.triton.merging import merged, to_rows

STEPS = 16  # of one program


class Call:
    """The operands of one call as the kernels read them, and how its work is cut."""

    def __init__(self, x, weight, bias, paths, seq_idx, state):
        self.x = launcher.rows(x)
        whole = (None if v is None else v.contiguous() for v in (weight, bias, paths, seq_idx, state))
        self.weight, self.bias, self.paths, self.seq_idx, self.state = whole
        self.batch, _, self.length, self.channels = x.shape
        self.directions, _, self.taps = weight.shape
        self.steps = self.length if paths is None else paths.shape[1]
        facts = None if paths is None else path_facts(paths, self.length)
        self.unique = facts is None or facts.unique
        self.make = torch.Tensor.new_empty if facts is None or facts.complete else torch.Tensor.new_zeros
        self.channels_block = min(128, max(16, power_of_two(self.channels)))

    def programs(self, steps: int) -> int:
        planes = self.batch * self.directions
        return planes * blocks(steps, STEPS) * blocks(self.channels, self.channels_block)

    def sizes(self) -> tuple[int, ...]:
        return self.channels, self.directions, self.length, self.steps

    def options(self) -> dict[str, int | bool]:
        return {
            "W": self.taps,
            "BT": STEPS,
            "BD": self.channels_block,
            "HAS_PATHS": self.paths is not None,
            "HAS_SEQ": self.seq_idx is not None,
            "num_warps": 4,
        }

    def by_row(self, like: torch.Tensor) -> torch.Tensor:
        """(B, K, L, D), or (B, K, T, D) where paths visit rows twice."""
        rows = self.length if self.unique else self.steps
        return self.make(like, (self.batch, self.directions, rows, self.channels))


def forward(x, weight, bias, paths, seq_idx, state, silu):
    """See `register.py`."""
    call = Call(x, weight, bias, paths, seq_idx, state)
    y = call.by_row(x if call.unique else weight)
    last = weight.new_empty(call.batch, call.directions, call.channels, call.taps - 1)
    operands = (call.x, call.weight, call.bias, call.paths, call.seq_idx, call.state, y, last)
    launcher.launch(
        conv_fwd_kernel, call.programs(max(1, call.steps)), *given(operands, weight), *call.sizes(), *strides(call.x),
        **row_strides(x=call.x), HAS_BIAS=bias is not None, HAS_STATE=state is not None, STEPPED=not call.unique,
        SILU=silu, FAST=launcher.fast(), **call.options(),
    )  # fmt: skip
    y = y if call.unique else to_rows(y, call.paths, call.length)
    return y.to(x.dtype), last.to(x.dtype)


def backward(dy, dlast, x, weight, bias, paths, seq_idx, state, silu):
    """See `register.py`."""
    call = Call(x, weight, bias, paths, seq_idx, state)
    dy, dlast = launcher.rows(dy), None if dlast is None else dlast.to(weight.dtype).contiguous()
    dsums = weight.new_empty(call.batch, call.directions, call.steps, call.channels)
    parts = (call.batch, blocks(call.steps, STEPS), call.directions, call.channels)
    dweight, dbias = weight.new_empty(*parts, call.taps), weight.new_empty(parts)
    operands = (dy, call.x, call.weight, call.bias, call.paths, call.seq_idx, call.state, dsums, dweight, dbias)
    launcher.launch(
        conv_bwd_sums_kernel, call.programs(call.steps), *given(operands, weight), *call.sizes(),
        *strides(dy), *strides(call.x), **row_strides(dy=dy, x=call.x), HAS_BIAS=bias is not None,
        HAS_STATE=state is not None, SILU=silu, FAST=launcher.fast(), **call.options(),
    )  # fmt: skip
    direct = call.unique and x.shape[1] == call.directions
    dx = call.by_row(x if direct else weight)
    dstate = weight.new_empty(call.batch, call.directions, call.channels, call.taps - 1)
    launcher.launch(
        conv_bwd_inputs_kernel, call.programs(call.steps + call.taps - 1),
        *given((dsums, call.weight, call.paths, call.seq_idx, dlast, dx, dstate), weight), *call.sizes(),
        HAS_LAST=dlast is not None, STEPPED=not call.unique, **call.options(),
    )  # fmt: skip
    if not direct:
        dx = dx if call.unique else to_rows(dx, call.paths, call.length)
        dx, _ = merged(dx, x.shape[1], None, x.dtype, False)
    return dx, dweight.sum((0, 1)), None if bias is None else dbias.sum((0, 1)), dstate


def update(x, state, weight, bias, silu):
    """One step, without gradients: x (B, D), state (B, D, W - 1), weight (D, W), bias (D) -> y and the new state."""
    x, state, weight, bias = (None if v is None else v.contiguous() for v in (x, state, weight, bias))
    y, new = torch.empty_like(x), torch.empty_like(state)
    launcher.launch(
        conv_update_kernel, blocks(x.numel(), 128), *given((x, state, weight, bias, y, new), x), x.numel(), x.shape[1],
        W=weight.shape[1], BLOCK=128, HAS_BIAS=bias is not None, SILU=silu, FAST=launcher.fast(), num_warps=4,
    )  # fmt: skip
    return y, new
