# SPDX-License-Identifier: Apache-2.0
"""The selective scan on GPU kernels, in float32. The formula stands in `reference.py`, the operands in `register.py`.

Two routes. With programs enough to fill the device, one program runs all steps of its channels, the state in registers.
Else the steps are cut into spans that run side by side: first every span from a zero state, then the states that enter
the spans are combined from these, then every span again, from its own. That is twice the work, on many more programs.

No kernel adds into memory that another program writes, so results are the same in every run: rows are written once,
by direction and tile of states, and added up afterwards in a fixed order.
"""

import torch

from vlmamba.ops.paths import path_facts
from vlmamba.ops.selective_scan.chunked import INTERVAL
from vlmamba.ops.selective_scan.triton_backward import scan_bwd_kernel
from vlmamba.ops.selective_scan.triton_forward import combine_kernel, scan_fwd_kernel, scan_local_kernel
from vlmamba.ops.triton import launcher
from vlmamba.ops.triton.launcher import blocks, given, power_of_two, row_strides, strides
from vlmamba.ops.triton.merging import merged, to_rows, ungated

LOG2E = 1.4426950408889634
TILE = 16  # states of one program
ROWS_AHEAD = 4
STEPS_BACK = 2  # steps that backward keeps in registers
Tensor = torch.Tensor


def span_length(steps: int, programs: int, device: torch.device) -> int:
    """Steps of one program, a multiple of INTERVAL, where `programs` programs have all other work in hand.

    All steps, if at least 8 programs (of a warp each) run on every multiprocessor, or if there are few steps; else as
    many as give 16 programs each.
    """
    every = max(1, blocks(steps, INTERVAL))
    wanted = 16 * launcher.multiprocessors(device)
    if programs * 2 >= wanted or every <= 2:
        return every * INTERVAL
    return blocks(every, min(every, blocks(wanted, programs))) * INTERVAL


class Call:
    """The operands of one call as the kernels read them, and how its work is cut."""

    def __init__(self, x, dt, A, B, C, D, dt_bias, paths, seq_idx, softplus, backward=False):
        self.batch, _, self.length, self.channels = x.shape
        self.directions, _, self.size = A.shape
        self.x, self.dt = (launcher.rows(v) for v in (x, dt))
        # every program reads these rows: converted once
        self.B, self.C = (launcher.rows(v.float()) for v in (B, C))
        self.paths, self.seq_idx, self.D, self.dt_bias = (
            v if v is None else v.contiguous() for v in (paths, seq_idx, D, dt_bias)
        )
        self.A = torch.mul(A.mT, LOG2E, out=A.new_empty(self.directions, self.size, self.channels))
        self.steps = self.length if paths is None else paths.shape[1]
        facts = None if paths is None else path_facts(paths, self.length)
        self.padded = facts is not None and facts.low < 0
        self.unique = facts is None or facts.unique
        self.complete = facts is None or facts.complete
        self.softplus = softplus

        self.states_block = min(TILE, power_of_two(self.size))
        self.tiles = blocks(self.size, self.states_block)
        # backward adds over channels: where there are few states, a thread has two channels, a warp 64
        self.channels_block = 64 if backward and self.states_block <= 4 else 32
        self.planes = self.directions * self.tiles
        self.programs = self.batch * self.planes * blocks(self.channels, self.channels_block)
        self.span = span_length(self.steps, self.programs, x.device)
        self.spans = max(1, blocks(self.steps, self.span))

    def sizes(self) -> tuple[int, ...]:
        return 1, self.channels, self.directions, self.length, self.steps, self.span, self.spans

    def options(self) -> dict[str, int | bool]:
        """Constants that all kernels over steps share."""
        return {
            "N": self.size,
            "BN": self.states_block,
            "BD": self.channels_block,
            "MASKED": bool(self.channels % self.channels_block or self.size % self.states_block),
            "HAS_BIAS": self.dt_bias is not None,
            "HAS_PATHS": self.paths is not None,
            "PADDED": self.padded,
            "HAS_SEQ": self.seq_idx is not None,
            "SOFTPLUS": self.softplus,
            "FAST": launcher.fast(),
            "num_warps": 1,
        }

    def planes_of_states(self, count: int) -> Tensor:
        return self.A.new_empty(self.batch, self.directions, count, self.size, self.channels)

    def entering(self, x: Tensor, B: Tensor, initial: Tensor | None, backward: bool) -> Tensor | None:
        """(B, K, spans, N, D): the state before each span; backward, with dy and C, its gradient after each span."""
        initial = None if initial is None else initial.mT.contiguous()
        if self.spans == 1:
            return initial
        states, decay = (self.planes_of_states(self.spans) for _ in range(2))
        operands = (x, self.dt, self.A, B, self.dt_bias, self.paths, self.seq_idx, states, decay)
        launcher.launch(
            scan_local_kernel, self.programs * self.spans, *given(operands, self.A), *self.sizes(),
            *strides(x), *strides(self.dt), *strides(B), **row_strides(x=x, dt=self.dt, B=B),
            AHEAD=ROWS_AHEAD, BACKWARD=backward, **self.options(),
        )  # fmt: skip
        elements = self.size * self.channels
        launcher.launch(
            combine_kernel, self.batch * self.directions * blocks(elements, 128), states, decay,
            *given((initial,), self.A), elements, self.spans,
            HAS_INITIAL=initial is not None, BACKWARD=backward, BLOCK=128, num_warps=1,
        )  # fmt: skip
        return states

    def at_rows(self, gradient: Tensor, operand: Tensor, done: bool) -> Tensor:
        """By direction and tile, and at steps where rows are visited twice -> shaped and typed as the operand."""
        if done:
            return gradient
        parts = gradient if self.unique else to_rows(gradient, self.paths, self.length)
        return merged(parts, operand.shape[1], None, operand.dtype, False)[0]

    def summed(self, gradient: Tensor, operand: Tensor) -> Tensor:
        """By channel block, (B, K, blocks, rows, N) -> shaped and typed as the operand."""
        gradient = gradient.sum(2) if self.unique else to_rows(gradient.sum(2), self.paths, self.length)
        gradient = gradient.sum(1, keepdim=True) if operand.shape[1] != self.directions else gradient
        return gradient.to(operand.dtype)


def forward(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, state, softplus, merge, keep):
    """See `register.py`."""
    call = Call(x, dt, A, B, C, D, dt_bias, paths, seq_idx, softplus)
    z = launcher.rows(z)
    groups = 1 if merge else call.directions
    keep_y = keep and z is not None
    # one plane at most writes a row: the kernel itself gates and rounds
    direct = call.planes == groups and call.unique
    rows = call.length if call.unique else call.steps
    make = torch.Tensor.new_empty if call.complete or not call.unique else torch.Tensor.new_zeros
    out = make(x if direct else A, (call.batch, groups if direct else call.planes, rows, call.channels))
    y = make(A, out.shape) if keep_y and direct else None
    last = A.new_empty(call.batch, call.directions, call.size, call.channels)
    states = call.planes_of_states(blocks(call.steps, INTERVAL)) if keep else None
    starts = call.entering(call.x, call.B, state, backward=False)
    operands = (call.x, call.dt, call.A, call.B, call.C, call.D, z if direct else None, call.dt_bias)
    operands += (call.paths, call.seq_idx, starts, out, y, last, states)
    launcher.launch(
        scan_fwd_kernel, call.programs * call.spans, *given(operands, A), *call.sizes(),
        *strides(call.x), *strides(call.dt), *strides(call.B), *strides(call.C), *strides(z)[:1], *strides(out),
        **row_strides(x=call.x, dt=call.dt, B=call.B, C=call.C, z=z, out=out),
        AHEAD=ROWS_AHEAD, HAS_D=D is not None, HAS_Z=direct and z is not None, HAS_STARTS=starts is not None,
        KEEP=keep, KEEP_Y=y is not None, STEPPED=not call.unique, **call.options(),
    )  # fmt: skip
    if not direct:
        parts = out if call.unique else to_rows(out, call.paths, call.length)
        out, y = merged(parts, groups, z, x.dtype, keep_y)
    return out, last.mT.contiguous(), y, states


def backward(dout, dlast, x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, y, states, softplus, merge):
    """See `register.py`."""
    call = Call(x, dt, A, B, C, D, dt_bias, paths, seq_idx, softplus, backward=True)
    dy, dz = (launcher.rows(dout), None) if z is None else ungated(dout, z, y)
    leaving = call.entering(dy, call.C, dlast, backward=True)
    rows = call.length if call.unique else call.steps
    make = torch.Tensor.new_empty if call.complete or not call.unique else torch.Tensor.new_zeros
    # where one plane at most writes a row, the kernel itself rounds
    direct = [call.unique and call.planes == v.shape[1] for v in (x, dt)]
    shape = (call.batch, call.planes, rows, call.channels)
    dx, ddt = (make(v if one else A, shape) for v, one in zip((x, dt), direct, strict=True))
    cuts = blocks(call.channels, call.channels_block)
    dB, dC = (make(A, (call.batch, call.directions, cuts, rows, call.size)) for _ in range(2))
    dA = call.planes_of_states(call.spans)
    dD, dbias = (A.new_empty(call.batch, call.directions, call.spans, call.tiles, call.channels) for _ in range(2))
    dstate = A.new_empty(call.batch, call.directions, call.size, call.channels)
    items = call.programs * call.spans
    # a few at a time, so that the states they put aside stay in cache; the next use the same memory
    programs = min(items, max(1, launcher.multiprocessors(x.device)) * (8 if call.states_block > 4 else 16))
    kept = INTERVAL // STEPS_BACK * call.states_block * call.channels_block + 2 * INTERVAL * call.channels_block
    operands = (dy, call.x, call.dt, call.A, call.B, call.C, call.D, call.dt_bias, call.paths, call.seq_idx, states)
    operands += (leaving, A.new_empty(programs, kept), dx, ddt, dA, dB, dC, dD, dbias, dstate)
    for first in range(0, items, max(1, programs)):
        launcher.launch(
            scan_bwd_kernel, min(programs, items - first), *given(operands, A), 0, *call.sizes()[1:], first,
            *(v for operand in (dy, call.x, call.dt, call.B, call.C, dx) for v in strides(operand)),
            **row_strides(dy=dy, x=call.x, dt=call.dt, B=call.B, C=call.C, dx=dx), U=STEPS_BACK,
            TAIL=bool(call.steps % STEPS_BACK), HAS_D=D is not None, HAS_LEAVING=leaving is not None,
            STEPPED=not call.unique, **call.options(),
        )  # fmt: skip
    dx, ddt = (call.at_rows(g, v, one) for g, v, one in zip((dx, ddt), (x, dt), direct, strict=True))
    dB, dC = (call.summed(g, v) for g, v in ((dB, B), (dC, C)))
    dA = dA.sum((0, 2)).mT.contiguous()
    dD, dbias = (None if v is None else g.sum((0, 2, 3)) for g, v in ((dD, D), (dbias, dt_bias)))
    return dx, ddt, dA, dB, dC, dD, dz, dbias, dstate.mT.contiguous()
