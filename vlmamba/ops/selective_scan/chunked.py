# SPDX-License-Identifier: Apache-2.0
"""The selective scan in plain PyTorch: time-major chunks, exact products, O(L) memory.

Inside a chunk, decay and input are made for all its steps at once and the recurrence runs in place,
one fused multiply-add a step; nothing of size (B, L, D, N) ever exists. No division and no cumulative
product or logarithm is used, so it cannot overflow. Backward keeps one state per chunk and recomputes
the rest. The formula stands in `reference.py`.

Shapes: T steps of a chunk, K directions, B batch, N state, D channels (innermost, so that every
elementwise op runs over contiguous channels).
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from vlmamba.ops.numerics import in_full_precision

# state elements of one chunk: decay and states of a chunk stay in a CPU's last-level cache
CHUNK_ELEMENTS = 1 << 20
MAX_CHUNK = 64


def chunk_length(state_elements: int) -> int:
    """Steps per chunk for a state of that many numbers (all batches, directions, channels)."""
    return max(4, min(MAX_CHUNK, CHUNK_ELEMENTS // max(1, state_elements)))


def steps(tensor: torch.Tensor, rows: torch.Tensor | None, start: int, stop: int) -> torch.Tensor:
    """(B, K, L, X) -> (T, K, B, X): what each direction reads at steps start..stop; padded steps give 0."""
    if rows is None:
        return tensor[:, :, start:stop].permute(2, 1, 0, 3)
    chunk = rows[:, start:stop].t()  # (T, K)
    direction = torch.arange(rows.shape[0], device=rows.device)
    taken = tensor.permute(1, 2, 0, 3)[direction, chunk.clamp(min=0)]
    return taken.mul_((chunk >= 0)[..., None, None])


def to_rows(stepped: torch.Tensor, rows: torch.Tensor | None, length: int) -> torch.Tensor:
    """(T, K, B, X) of all steps -> (B, K, L, X): every step's value added to the row it visited."""
    if rows is None:
        return stepped.permute(2, 1, 0, 3)
    out = stepped.new_zeros(stepped.shape[1], length + 1, *stepped.shape[2:])  # the last row takes padded steps
    for k, row in enumerate(rows):
        out[k].index_add_(0, row.remainder(length + 1), stepped[:, k])
    return out[:, :length].permute(2, 0, 1, 3)


class Chunks:
    """The scan of one call, chunk by chunk, in buffers that all its chunks share (fresh ones cost page faults)."""

    def __init__(self, x, dt, A, B, C, dt_bias, rows, keeps, softplus):
        self.operands = (x, dt, B, C)
        self.A, self.dt_bias, self.rows, self.keeps, self.softplus = A, dt_bias, rows, keeps, softplus
        self.total = x.shape[2] if rows is None else rows.shape[1]
        shape = (A.shape[0], x.shape[0], *A.shape[1:])  # (K, B, N, D)
        self.size = min(self.total, chunk_length(math.prod(shape)))
        self.decays, self.all_states = (A.new_empty(self.size, *shape) for _ in range(2))

    def spans(self) -> list[tuple[int, int]]:
        """First and last step of every chunk."""
        return [(t, min(t + self.size, self.total)) for t in range(0, self.total, max(1, self.size))]

    def run(self, span: tuple[int, int], state: torch.Tensor) -> None:
        """Scan steps span[0]..span[1] from `state` (K, B, N, D); leaves what both passes need as attributes."""
        self.x, raw, self.B, self.C = (steps(v, self.rows, *span).contiguous() for v in self.operands)
        self.raw = raw if self.dt_bias is None else raw + self.dt_bias[:, None]  # (T, K, B, D)
        self.delta = F.softplus(self.raw) if self.softplus else self.raw
        length = span[1] - span[0]
        self.decay, self.states = self.decays[:length], self.all_states[:length]  # (T, K, B, N, D)
        torch.mul(self.delta.unsqueeze(-2), self.A[:, None], out=self.decay).exp_()
        if self.keeps is not None:
            self.decay.mul_(steps(self.keeps, None, *span).unsqueeze(-1))
        torch.mul((self.delta * self.x).unsqueeze(-2), self.B.unsqueeze(-1), out=self.states)
        for decay, current in zip(self.decay, self.states, strict=True):
            state = current.addcmul_(decay, state)


class ChunkedScan(torch.autograd.Function):
    """(x, dt, A, B, C, D, dt_bias, state) -> (y, last state), A as (K, N, D) and state as (K, B, N, D)."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, dt_bias, state, rows, keeps, softplus):
        chunks = Chunks(x, dt, A, B, C, dt_bias, rows, keeps, softplus)
        y = x.new_empty(chunks.total, *state.shape[:2], x.shape[-1])
        checkpoints = []
        for span in chunks.spans():
            checkpoints.append(state)
            chunks.run(span, state)
            out = y[slice(*span)]
            torch.matmul(chunks.C.unsqueeze(-2), chunks.states, out=out.unsqueeze(-2))
            if D is not None:
                out.addcmul_(chunks.x, D[:, None])
            state = chunks.states[-1].clone()
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, rows, keeps, *checkpoints)
            ctx.softplus = softplus
        return to_rows(y, rows, x.shape[2]), state

    @staticmethod
    @once_differentiable
    @in_full_precision
    def backward(ctx, dy, dstate):
        x, dt, A, B, C, D, dt_bias, rows, keeps, *checkpoints = ctx.saved_tensors
        chunks = Chunks(x, dt, A, B, C, dt_bias, rows, keeps, ctx.softplus)
        # gradients in step order (T, K, B, D | N)
        dx, ddt, dB, dC = (v.new_empty(chunks.total, *dstate.shape[:2], v.shape[-1]) for v in (x, dt, B, C))
        dA = torch.zeros_like(A)
        dD = torch.zeros_like(D) if D is not None else None
        gradients = torch.empty_like(chunks.all_states)
        carry = dstate.clone()  # gradient of the state after the chunk's last step
        for span, state in zip(reversed(chunks.spans()), reversed(checkpoints), strict=True):
            chunks.run(span, state)
            dy_t = steps(dy, rows, *span).contiguous()
            g = gradients[: len(dy_t)]  # gradient of the states
            torch.mul(dy_t.unsqueeze(-2), chunks.C.unsqueeze(-1), out=g)
            g[-1].add_(carry)
            for step in range(len(g) - 2, -1, -1):
                g[step].addcmul_(chunks.decay[step + 1], g[step + 1])
            torch.mul(chunks.decay[0], g[0], out=carry)
            now = slice(*span)
            torch.matmul(chunks.states, dy_t.unsqueeze(-1), out=dC[now].unsqueeze(-1))
            torch.matmul(g, (chunks.delta * chunks.x).unsqueeze(-1), out=dB[now].unsqueeze(-1))
            dinput = torch.matmul(chunks.B.unsqueeze(-2), g).squeeze(-2)  # gradient of delta * x
            # gradient of delta * A in place of g: g * decay * previous state
            g.mul_(chunks.decay)
            g[1:].mul_(chunks.states[:-1])
            g[0].mul_(state)
            ddelta = torch.mul(g, A[:, None], out=chunks.decay).sum(-2).addcmul_(dinput, chunks.x)
            dA += g.mul_(chunks.delta.unsqueeze(-2)).sum((0, 2))
            torch.mul(dinput, chunks.delta, out=dx[now])
            if D is not None:
                dx[now].addcmul_(dy_t, D[:, None])
                dD += (dy_t * chunks.x).sum((0, 2))
            ddt[now] = ddelta.mul_(torch.sigmoid(chunks.raw)) if ctx.softplus else ddelta
        dbias = ddt.sum((0, 2)) if dt_bias is not None else None
        dx, ddt, dB, dC = (to_rows(v, rows, x.shape[2]) for v in (dx, ddt, dB, dC))
        return dx, ddt, dA, dB, dC, dD, dbias, carry, None, None, None


def sequence_keeps(seq_idx: torch.Tensor, rows: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """(B, K, T, 1): 0 at steps where another packed sequence begins along the path, else 1."""
    batch, num_paths = like.shape[:2]
    along = seq_idx[:, None].expand(-1, num_paths, -1) if rows is None else seq_idx[:, rows]
    keep = torch.ones(batch, num_paths, along.shape[-1], 1, dtype=like.dtype, device=like.device)
    keep[:, :, 1:, 0] = along[..., 1:] == along[..., :-1]
    return keep


def selective_scan_chunked(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    paths: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    state: torch.Tensor,
    dt_softplus: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments and results as `selective_scan_reference`."""
    rows = None if paths is None else paths.long()
    keeps = None if seq_idx is None else sequence_keeps(seq_idx, rows, x)
    # a copy: the caller may update its state in place before backward
    state = state.permute(1, 0, 3, 2).clone(memory_format=torch.contiguous_format)
    A = A.transpose(1, 2).contiguous()
    y, state = ChunkedScan.apply(x, dt, A, B, C, D, dt_bias, state, rows, keeps, dt_softplus)
    return y, state.permute(1, 0, 3, 2)
