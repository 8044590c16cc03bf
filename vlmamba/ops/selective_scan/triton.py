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
from vlmamba.ops.selective_scan.triton_forward import combine_kernel, merge_kernel, scan_fwd_kernel, scan_local_kernel
from vlmamba.ops.triton import launcher
from vlmamba.ops.triton.launcher import blocks, power_of_two, row_strides, strides

INTERVAL = 64  # steps between two kept states
LOG2E = 1.4426950408889634
TILE = 16  # states of one program
ROWS_AHEAD = 4
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

    def __init__(self, x, dt, A, B, C, D, dt_bias, paths, seq_idx, softplus):
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
        self.channels_block = 32
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


def given(tensors: tuple[Tensor | None, ...], instead: Tensor) -> tuple[Tensor, ...]:
    """Kernels take a pointer for every operand; they never read those that are not there."""
    return tuple(instead if v is None else v for v in tensors)


def to_rows(stepped: Tensor, paths: Tensor, length: int) -> Tensor:
    """(B, K * tiles, T, D) -> (B, K * tiles, L, D): every step's value added to its row, in the order of the steps."""
    tiles = stepped.shape[1] // paths.shape[0]
    rows = paths.long().remainder(length + 1)  # the last row takes padded steps
    out = stepped.new_zeros(stepped.shape[1], length + 1, stepped.shape[0], stepped.shape[3])
    for plane in range(stepped.shape[1]):
        # unlike index_add_, deterministic on every device
        out[plane].index_put_((rows[plane // tiles],), stepped[:, plane].transpose(0, 1), accumulate=True)
    return out[:, :length].permute(2, 0, 1, 3).contiguous()


def merged(parts: Tensor, groups: int, z: Tensor | None, dtype: torch.dtype, keep_y: bool):
    """(B, P, L, D) -> sums (B, groups, L, D) times silu(z), and before the gate if asked for."""
    batch, planes, length, channels = parts.shape
    out = parts.new_empty(batch, groups, length, channels, dtype=dtype)
    y = parts.new_empty(out.shape) if keep_y else None
    BD = min(128, power_of_two(channels))
    BL = 1024 // BD
    launcher.launch(
        merge_kernel, batch * groups * blocks(length, BL) * blocks(channels, BD), parts, *given((z,), parts), out,
        *given((y,), parts), length, channels, planes // groups, groups, *strides(z)[:1],
        z_r=0 if z is None else z.stride(2), HAS_Z=z is not None, KEEP_Y=keep_y, BL=BL, BD=BD, FAST=launcher.fast(), num_warps=4,
    )  # fmt: skip
    return out, y


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
