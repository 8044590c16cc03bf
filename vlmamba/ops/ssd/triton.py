# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan on GPU kernels, in float32: matrix products inside chunks, a recurrence between them.

The method is that of `chunked.py`, the formula stands in `reference.py`, the operands in `register.py`. Products of
float32 matrices keep float32's accuracy. No kernel adds into memory that another program writes.
"""

import torch

from vlmamba.ops.ssd.triton_backward import (
    ssd_bwd_matrices_kernel,
    ssd_bwd_pairs_kernel,
    ssd_bwd_times_kernel,
    ssd_bwd_x_kernel,
)
from vlmamba.ops.ssd.triton_kernels import ssd_combine_kernel, ssd_fwd_kernel, ssd_local_kernel, ssd_update_kernel
from vlmamba.ops.triton import launcher
from vlmamba.ops.triton.launcher import blocks, given, power_of_two
from vlmamba.ops.triton.merging import ungated

TILE = 32  # most numbers of a head, and most states, of one matrix product
Tensor = torch.Tensor


class Call:
    """The operands of one call as the kernels read them, and how its work is cut."""

    def __init__(self, x, dt, A, B, C, D, dt_bias, seq_idx, chunk_size, softplus, low, high):
        self.batch, self.length, self.heads, self.size = x.shape
        self.groups, self.states = B.shape[2:]
        self.x, self.dt, self.B, self.C = (launcher.rows(v) for v in (x, dt, B, C))
        self.A, self.D, self.dt_bias, self.seq_idx = (
            v if v is None else v.contiguous() for v in (A, D, dt_bias, seq_idx)
        )
        self.chunk, self.chunks = chunk_size, blocks(self.length, chunk_size)
        self.block, self.tile = (min(TILE, max(16, power_of_two(v))) for v in (self.size, self.states))
        self.softplus, self.limits = softplus, (float(low), float(high))

    def programs(self) -> int:
        return self.batch * self.chunks * self.heads * blocks(self.size, self.block)

    def sizes(self) -> tuple[int | float, ...]:
        return self.length, self.chunks, self.chunk, self.heads, self.heads // self.groups, *self.limits

    def options(self) -> dict[str, int | bool | str]:
        return {
            "P": self.size,
            "N": self.states,
            "BQ": max(16, power_of_two(self.chunk)),
            "BP": self.block,
            "BN": self.tile,
            "HAS_BIAS": self.dt_bias is not None,
            "HAS_SEQ": self.seq_idx is not None,
            "SOFTPLUS": self.softplus,
            "FAST": launcher.fast(),
            "num_warps": 8,
        }

    def through_chunks(self, x: Tensor, B: Tensor, initial: Tensor | None, backward: bool) -> tuple[Tensor, Tensor]:
        """The state before each chunk (B, chunks, H, P, N) and after the last; backward, with dy and C, its gradient
        after each and before the first.
        """
        shape = (self.heads, self.size, self.states)
        states, last = self.A.new_empty(self.batch, self.chunks, *shape), self.A.new_empty(self.batch, *shape)
        decay = self.A.new_empty(self.batch, self.chunks, self.heads)
        initial = None if initial is None else initial.contiguous()
        operands = (x, self.dt, self.A, B, self.dt_bias, self.seq_idx, states, decay)
        launcher.launch(
            ssd_local_kernel, self.programs() * blocks(self.states, self.tile), *given(operands, self.A), *self.sizes(),
            *x.stride()[:3], *self.dt.stride()[:2], *B.stride()[:3], BACKWARD=backward, **self.options(),
        )  # fmt: skip
        elements = self.size * self.states
        launcher.launch(
            ssd_combine_kernel, self.batch * self.heads * blocks(elements, 512), states, decay,
            *given((initial,), self.A), last, self.chunks, self.heads, elements,
            HAS_INITIAL=initial is not None, BACKWARD=backward, BLOCK=512, num_warps=4,
        )  # fmt: skip
        return states, last


def forward(x, dt, A, B, C, D, z, dt_bias, seq_idx, state, chunk_size, softplus, low, high, keep):
    """See `register.py`."""
    call = Call(x, dt, A, B, C, D, dt_bias, seq_idx, chunk_size, softplus, low, high)
    z = launcher.rows(z)
    z_strides = (0, 0, 0) if z is None else z.stride()[:3]
    out = x.new_empty(x.shape)
    y = A.new_empty(x.shape) if keep and z is not None else None
    states, last = call.through_chunks(call.x, call.B, state, backward=False)
    operands = (call.x, call.dt, call.A, call.B, call.C, call.D, z, call.dt_bias, call.seq_idx, states, out, y)
    launcher.launch(
        ssd_fwd_kernel, call.programs(), *given(operands, A), *call.sizes(), *call.x.stride()[:3],
        *call.dt.stride()[:2], *call.B.stride()[:3], *call.C.stride()[:3], *z_strides,
        HAS_D=D is not None, HAS_Z=z is not None, KEEP_Y=y is not None, **call.options(),
    )  # fmt: skip
    return out, last, y, states if keep else None


def backward(dout, dlast, x, dt, A, B, C, D, z, dt_bias, seq_idx, y, states, chunk_size, softplus, low, high):
    """See `register.py`."""
    call = Call(x, dt, A, B, C, D, dt_bias, seq_idx, chunk_size, softplus, low, high)
    dy, dz = launcher.rows(dout), None
    if z is not None:
        # (B, L, H, P) -> (B, 1, L, H * P)
        dy, dz = (v.squeeze(1).view(x.shape) for v in ungated(*(v.flatten(2).unsqueeze(1) for v in (dout, z, y))))
    left, dstate = call.through_chunks(dy, call.C, dlast, backward=True)
    dx, ddt = x.new_empty(x.shape), dt.new_empty(dt.shape)
    dB, dC = (A.new_empty(*x.shape[:3], call.states) for _ in range(2))
    by_chunk = (call.batch, call.chunks, call.heads)
    dA, dbias, dD = A.new_empty(by_chunk), A.new_empty(by_chunk), A.new_empty(*by_chunk, call.size)
    # smaller pieces where more is held at once
    options, pairs, numbers = call.options(), {"BN": 16}, {"BP": 16}
    parts, BQ = blocks(call.size, 16), options["BQ"]
    mixing, dscores = (A.new_empty(*by_chunk, BQ, BQ) for _ in range(2))
    dpairs, sums = A.new_empty(*by_chunk, BQ), A.new_empty(*by_chunk, parts, 4, BQ)
    times = (call.dt, call.A, call.dt_bias, call.seq_idx)
    rows = (dy, call.x, call.dt, call.A, call.B, call.C)
    sizes = (*call.sizes(), *dy.stride()[:3], *call.x.stride()[:3], *call.dt.stride()[:2])
    sizes += (*call.B.stride()[:3], *call.C.stride()[:3])
    programs = call.batch * call.chunks * call.heads
    operands = (*rows, *times[2:], mixing, dscores, dpairs)
    launcher.launch(ssd_bwd_pairs_kernel, programs, *given(operands, A), *sizes, **options | pairs)
    operands = (*rows, call.D, *times[2:], states, left, mixing, dx, sums, dD)
    launcher.launch(
        ssd_bwd_x_kernel, programs * parts, *given(operands, A), *sizes, HAS_D=D is not None, **options | numbers
    )
    operands = (*rows, *times[2:], states, left, dscores, dB, dC)
    launcher.launch(
        ssd_bwd_matrices_kernel, programs * blocks(call.states, call.tile), *given(operands, A), *sizes, **options
    )
    options = {name: options[name] for name in ("BQ", "HAS_BIAS", "HAS_SEQ", "SOFTPLUS", "FAST")}
    launcher.launch(
        ssd_bwd_times_kernel, programs, *given((*times, dpairs, sums, ddt, dA, dbias), A), *call.sizes(),
        *call.dt.stride()[:2], PARTS=parts, num_warps=1, **options,
    )  # fmt: skip
    dB, dC = (g.unflatten(2, (call.groups, -1)).sum(3).to(v.dtype) for g, v in ((dB, B), (dC, C)))
    dD, dbias = (None if v is None else g.sum((0, 1)) for g, v in ((dD, D), (dbias, dt_bias)))
    return dx, ddt, dA.sum((0, 1)), dB, dC, dD, dz, dbias, dstate


def update(state, x, dt, A, B, C, D, z, dt_bias, softplus, low, high):
    """One step, without gradients: x, z (B, H, P), dt (B, H), B, C (B, G, N), state (B, H, P, N) -> y and the state."""
    operands = [v if v is None else v.contiguous() for v in (state, x, dt, A, B, C, D, z, dt_bias)]
    (batch, heads, size), (groups, states) = x.shape, B.shape[1:]
    y, new = x.new_empty(x.shape), torch.empty_like(operands[0])
    launcher.launch(
        ssd_update_kernel, batch * heads * blocks(size, 16), *given((*operands, y, new), x), heads, heads // groups,
        float(low), float(high), P=size, N=states, BP=16, BN=power_of_two(states), HAS_D=D is not None,
        HAS_Z=z is not None, HAS_BIAS=dt_bias is not None, SOFTPLUS=softplus, FAST=launcher.fast(), num_warps=4,
    )  # fmt: skip
    return y, new
