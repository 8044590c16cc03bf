# SPDX-License-Identifier: Apache-2.0
"""The selective scan in plain PyTorch: time-major chunks, exact products, O(L) memory.

Inside a chunk, decay and input are made for all its steps at once and the recurrence runs in place,
one fused multiply-add a step; nothing of size (B, L, D, N) ever exists. No division and no cumulative
product or logarithm is used, so it cannot overflow. Forward keeps a state every INTERVAL steps and backward
recomputes the rest. The formula stands in `reference.py`, the operands in `register.py`.

Shapes: T steps of a chunk, K directions, B batch, N state, D channels (innermost, so that every
elementwise op runs over contiguous channels).
"""

import math

import torch
import torch.nn.functional as F

from vlmamba.ops.numerics import in_full_precision

INTERVAL = 64  # steps between two kept states, in every backend: `TILE` of native/common.h, 64 in the Triton kernels
# state elements of one chunk: decay and states of a chunk stay in a CPU's last-level cache
CHUNK_ELEMENTS = 1 << 20


def chunk_length(state_elements: int) -> int:
    """Steps per chunk, a divisor of INTERVAL, for a state of that many numbers (all batches, directions, channels)."""
    fitting = max(4, min(INTERVAL, CHUNK_ELEMENTS // max(1, state_elements)))
    return 1 << (fitting.bit_length() - 1)


def to_rows(stepped: torch.Tensor, rows: torch.Tensor | None, length: int) -> torch.Tensor:
    """(T, K, B, X) of all steps -> (B, K, L, X): every step's value added to the row it visited."""
    if rows is None:
        return stepped.permute(2, 1, 0, 3)
    out = stepped.new_zeros(stepped.shape[1], length + 1, *stepped.shape[2:])  # the last row takes padded steps
    for k, row in enumerate(rows):
        out[k].index_add_(0, row.remainder(length + 1), stepped[:, k])
    return out[:, :length].permute(2, 0, 1, 3)


def sequence_keeps(seq_idx: torch.Tensor, rows: torch.Tensor | None, num_paths: int, like: torch.Tensor):
    """(T, K, B, 1): 0 at steps where another packed sequence begins along the path, else 1."""
    along = seq_idx[:, None].expand(-1, num_paths, -1) if rows is None else seq_idx[:, rows]
    keep = like.new_ones(*along.shape, 1)
    keep[:, :, 1:, 0] = (along[..., 1:] == along[..., :-1]).to(like.dtype)
    return keep.permute(2, 1, 0, 3)


class Chunks:
    """The scan of one call, chunk by chunk, in buffers that all its chunks share (fresh ones cost page faults)."""

    def __init__(self, x, dt, A, B, C, dt_bias, paths, seq_idx, softplus):
        self.operands = tuple(v.contiguous() for v in (x, dt, B, C))
        self.A, self.dt_bias, self.softplus = A.transpose(1, 2).contiguous(), dt_bias, softplus
        self.rows = None if paths is None else paths.long()
        self.keeps = None if seq_idx is None else sequence_keeps(seq_idx, self.rows, A.shape[0], A)
        self.total = x.shape[2] if paths is None else paths.shape[1]
        shape = (A.shape[0], x.shape[0], *self.A.shape[1:])  # (K, B, N, D)
        self.size = chunk_length(math.prod(shape))
        self.decays, self.all_states = (A.new_empty(min(self.size, self.total), *shape) for _ in range(2))

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """First and last step of every chunk between two steps."""
        return [(t, min(t + self.size, stop)) for t in range(start, stop, self.size)]

    def intervals(self) -> list[tuple[int, int]]:
        return [(t, min(t + INTERVAL, self.total)) for t in range(0, self.total, INTERVAL)]

    def steps(self, tensor: torch.Tensor, span: tuple[int, int]) -> torch.Tensor:
        """Contiguous (B, 1 | K, L, X) -> (T, K, B, X): what each direction reads there; padded steps give 0."""
        if self.rows is None:
            tensor = tensor.expand(-1, self.A.shape[0], -1, -1)
            return tensor[:, :, slice(*span)].permute(2, 1, 0, 3).to(self.A.dtype).contiguous()
        chunk = self.rows[:, slice(*span)].t()  # (T, K)
        directions, length = tensor.shape[1:3]
        first = torch.arange(directions, device=chunk.device) * length
        rows = (chunk.clamp(min=0) + first).flatten()
        taken = tensor.permute(1, 2, 0, 3).flatten(0, 1).index_select(0, rows).to(self.A.dtype)
        return taken.view(*chunk.shape, *taken.shape[1:]) * (chunk >= 0)[..., None, None]

    def run(self, span: tuple[int, int], state: torch.Tensor) -> torch.Tensor:
        """Scan steps span[0]..span[1] from `state` (K, B, N, D); leaves what both passes need as attributes."""
        self.x, raw, self.B, self.C = (self.steps(v, span) for v in self.operands)
        self.raw = raw if self.dt_bias is None else raw + self.dt_bias[:, None]  # (T, K, B, D)
        self.delta = F.softplus(self.raw) if self.softplus else self.raw
        length = span[1] - span[0]
        self.decay, self.states = self.decays[:length], self.all_states[:length]  # (T, K, B, N, D)
        torch.mul(self.delta.unsqueeze(-2), self.A[:, None], out=self.decay).exp_()
        if self.keeps is not None:
            self.decay.mul_(self.keeps[slice(*span)].unsqueeze(-1))
        torch.mul((self.delta * self.x).unsqueeze(-2), self.B.unsqueeze(-1), out=self.states)
        for decay, current in zip(self.decay, self.states, strict=True):
            state = current.addcmul_(decay, state)
        return state.clone()


@in_full_precision
def forward(x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, state, softplus, merge, keep):
    """See `register.py`."""
    chunks = Chunks(x, dt, A, B, C, dt_bias, paths, seq_idx, softplus)
    state = A.new_zeros(x.shape[0], *A.shape) if state is None else state
    state = state.permute(1, 0, 3, 2).clone(memory_format=torch.contiguous_format)
    y = A.new_empty(chunks.total, *state.shape[:2], x.shape[-1])
    kept = A.new_empty(x.shape[0], A.shape[0], len(chunks.intervals()), *state.shape[2:]) if keep else None
    for i, interval in enumerate(chunks.intervals()):
        if keep:
            kept[:, :, i] = state.transpose(0, 1)
        for span in chunks.spans(*interval):
            state = chunks.run(span, state)
            out = torch.matmul(chunks.C.unsqueeze(-2), chunks.states).squeeze(-2)
            y[slice(*span)] = out if D is None else out.addcmul_(chunks.x, D[:, None])
    y = to_rows(y, chunks.rows, x.shape[2])
    y = y.sum(1, keepdim=True) if merge and A.shape[0] > 1 else y
    out = (y if z is None else y * F.silu(z.to(y.dtype))).to(x.dtype).contiguous()
    last = state.permute(1, 0, 3, 2).contiguous()
    return out, last, y.contiguous() if keep and z is not None else None, kept


@in_full_precision
def backward(dout, dlast, x, dt, A, B, C, D, z, dt_bias, paths, seq_idx, y, kept, softplus, merge):
    """See `register.py`."""
    dout, dz = dout.to(A.dtype), None
    if z is not None:
        gate, slope = z.to(A.dtype), torch.sigmoid(z.to(A.dtype))
        dz = (dout * y * slope * (1 + gate * (1 - slope))).to(z.dtype)
        dout = dout * gate * slope
    dout = dout.contiguous()
    chunks = Chunks(x, dt, A, B, C, dt_bias, paths, seq_idx, softplus)
    # gradients in step order (T, K, B, D | N)
    batch, directions = x.shape[0], A.shape[0]
    dx, ddt, dB, dC = (A.new_empty(chunks.total, directions, batch, v.shape[-1]) for v in (x, dt, B, C))
    dA, dD = torch.zeros_like(chunks.A), torch.zeros_like(D) if D is not None else None
    gradients = torch.empty_like(chunks.all_states)
    # gradient of the state after the steps done so far
    carry = A.new_zeros(batch, *A.shape) if dlast is None else dlast
    carry = carry.permute(1, 0, 3, 2).clone(memory_format=torch.contiguous_format)
    for i, interval in reversed(list(enumerate(chunks.intervals()))):
        spans, starts = chunks.spans(*interval), [kept[:, :, i].transpose(0, 1)]
        for span in spans[:-1]:
            starts.append(chunks.run(span, starts[-1]))
        for span, state in zip(reversed(spans), reversed(starts), strict=True):
            chunks.run(span, state)
            dy, now = chunks.steps(dout, span), slice(*span)
            g = gradients[: len(dy)]  # gradient of the states
            torch.mul(dy.unsqueeze(-2), chunks.C.unsqueeze(-1), out=g)
            g[-1].add_(carry)
            for step in range(len(g) - 2, -1, -1):
                g[step].addcmul_(chunks.decay[step + 1], g[step + 1])
            torch.mul(chunks.decay[0], g[0], out=carry)
            dC[now] = torch.matmul(chunks.states, dy.unsqueeze(-1)).squeeze(-1)
            dB[now] = torch.matmul(g, (chunks.delta * chunks.x).unsqueeze(-1)).squeeze(-1)
            dinput = torch.matmul(chunks.B.unsqueeze(-2), g).squeeze(-2)  # gradient of delta * x
            # gradient of delta * A in place of g: g * decay * previous state
            g.mul_(chunks.decay)
            g[1:].mul_(chunks.states[:-1])
            g[0].mul_(state)
            ddelta = torch.mul(g, chunks.A[:, None], out=chunks.decay).sum(-2).addcmul_(dinput, chunks.x)
            dA += g.mul_(chunks.delta.unsqueeze(-2)).sum((0, 2))
            torch.mul(dinput, chunks.delta, out=dx[now])
            if D is not None:
                dx[now].addcmul_(dy, D[:, None])
                dD += (dy * chunks.x).sum((0, 2))
            ddt[now] = ddelta.mul_(torch.sigmoid(chunks.raw)) if softplus else ddelta
    dbias = ddt.sum((0, 2)) if dt_bias is not None else None
    dx, ddt, dB, dC = (_like(to_rows(g, chunks.rows, x.shape[2]), v) for g, v in ((dx, x), (ddt, dt), (dB, B), (dC, C)))
    dstate = carry.permute(1, 0, 3, 2).contiguous()
    return dx, ddt, dA.transpose(1, 2).contiguous(), dB, dC, dD, dz, dbias, dstate


def _like(gradient: torch.Tensor, operand: torch.Tensor) -> torch.Tensor:
    """(B, K, L, X) -> the operand's shape and dtype: a shared operand gets the sum over the directions."""
    if operand.shape[1] != gradient.shape[1]:
        gradient = gradient.sum(1, keepdim=True)
    return gradient.to(operand.dtype).contiguous()
