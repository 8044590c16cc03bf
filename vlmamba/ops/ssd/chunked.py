# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan in plain PyTorch: matrix products inside chunks, a recurrence between them, O(L) memory.

After section 6 of arXiv:2405.21060 (the formula stands in `reference.py`). Inside a chunk, step i hears step j <= i
through `scores[i, j] * pair[i, j]`, with scores = C B^T and pair = the decay over steps j + 1..i; the state that enters
a chunk reaches step i through `enter[i]`, and step j reaches the state that leaves it through `leave[j]`. Decays are
exponentials of sums of logarithms that are never positive where A < 0 and dt >= 0: each is summed up for itself, never
as the difference of two cumulative sums, and a new packed sequence is a logarithm of -inf. So nothing overflows,
cancels or turns into NaN, in either direction. Backward keeps the states that enter chunks and makes the rest again.

Shapes: b batch, n chunks, q steps of a chunk, g groups, h heads, p head size, s state size; `by_group` puts a group's
heads side by side: (b, n, g, q, h / g * p).
"""

import torch
import torch.nn.functional as F

# elements of one block's pairs (b, n, h, q, q): they stay in a CPU's cache
BLOCK_ELEMENTS = 1 << 18

Tensor = torch.Tensor


def spans(x: Tensor, chunk_size: int) -> list[tuple[int, int, int]]:
    """Blocks of whole chunks (first step, number of chunks, steps of each); what is left over is a chunk of its own."""
    batch, length, heads, _ = x.shape
    most = max(1, BLOCK_ELEMENTS // max(1, batch * heads * chunk_size**2))
    whole = length // chunk_size
    blocks = [(i * chunk_size, min(most, whole - i), chunk_size) for i in range(0, whole, most)]
    rest = length - whole * chunk_size
    return [*blocks, (length - rest, 1, rest)] if rest else blocks


def sequence_starts(seq_idx: Tensor | None) -> Tensor | None:
    """(B, L) -> bool (B, L): where another packed sequence begins."""
    if seq_idx is None:
        return None
    starts = torch.zeros_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return starts


class Block:
    """Some chunks of one call: operands in the state's dtype, decays and mixing matrices, as both passes need them."""

    def __init__(self, x, dt, A, B, C, dt_bias, starts, softplus, low, high, span):
        start, chunks, size = span
        self.rows = slice(start, start + chunks * size)
        self.shape = (chunks, size)
        self.x, dt, B, C = (self.take(v).to(A.dtype) for v in (x, dt, B, C))
        self.B, self.C = B.transpose(2, 3), C.transpose(2, 3)  # (b, n, g, q, s)
        self.groups = B.shape[3]
        self.raw = dt if dt_bias is None else dt + dt_bias  # (b, n, q, h)
        self.unlimited = F.softplus(self.raw) if softplus else self.raw
        self.delta = self.unlimited.clamp(low, high)
        logs = (self.delta * A).transpose(2, 3)  # (b, n, h, q)
        if starts is not None:
            logs = logs.masked_fill(self.take(starts).unsqueeze(2), -torch.inf)
        below = torch.ones(size, size, dtype=torch.bool, device=x.device).tril(-1)
        self.pair = logs.unsqueeze(-1).masked_fill(~below, 0).cumsum(-2)
        self.pair = self.pair.masked_fill_(below.t(), -torch.inf).exp_()  # (b, n, h, q, q)
        self.enter = logs.cumsum(-1).exp_()
        self.leave = self.pair[..., -1, :]
        self.whole = self.enter[..., -1, None, None]
        scores = self.C @ self.B.transpose(-1, -2)  # (b, n, g, q, q)
        self.mixing = (self.pair.unflatten(2, (self.groups, -1)) * scores.unsqueeze(3)).flatten(2, 3)
        self.inputs = self.x * self.delta.unsqueeze(-1)  # (b, n, q, h, p)

    def take(self, tensor: Tensor) -> Tensor:
        """(b, l, ...) -> (b, n, q, ...)."""
        return tensor[:, self.rows].unflatten(1, self.shape)

    def put(self, tensor: Tensor, chunked: Tensor) -> None:
        """The other way, into a tensor of the whole length."""
        self.take(tensor).copy_(chunked)

    def by_group(self, tensor: Tensor) -> Tensor:
        """(b, n, q, h, p) -> (b, n, g, q, h / g * p)."""
        return tensor.unflatten(3, (self.groups, -1)).flatten(4).transpose(2, 3)

    def by_head(self, tensor: Tensor, heads: int) -> Tensor:
        """The other way."""
        return tensor.transpose(2, 3).unflatten(4, (heads // self.groups, -1)).flatten(3, 4)

    def states_by_group(self, states: Tensor) -> Tensor:
        """(b, n, h, p, s) -> (b, n, g, h / g * p, s)."""
        return states.unflatten(2, (self.groups, -1)).flatten(3, 4)

    def summed(self, rows: Tensor, columns: Tensor, heads: int) -> Tensor:
        """Outer products of (b, n, q, h, p) with (b, n, g, q, s), summed over a chunk's steps: (b, n, h, p, s)."""
        summed = self.by_group(rows).transpose(-1, -2) @ columns
        return summed.unflatten(3, (heads // self.groups, -1)).flatten(2, 3)

    def steps(self, decay: Tensor) -> Tensor:
        """(b, n, h, q) -> (b, n, q, h, 1)."""
        return decay.transpose(2, 3).unsqueeze(-1)


def forward(x, dt, A, B, C, D, z, dt_bias, seq_idx, state, chunk_size, softplus, low, high, keep):
    """See `register.py`."""
    batch, length, heads, size = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    ungated = A.new_empty(x.shape) if keep and z is not None else None
    kept = A.new_empty(batch, -(-length // chunk_size), heads, size, B.shape[3]) if keep else None
    starts = sequence_starts(seq_idx)
    state = A.new_zeros(batch, heads, size, B.shape[3]) if state is None else state
    for span in spans(x, chunk_size):
        block = Block(x, dt, A, B, C, dt_bias, starts, softplus, low, high, span)
        first = span[0] // chunk_size
        entries = block.summed(block.inputs * block.steps(block.leave), block.B, heads)
        states = torch.empty_like(entries) if kept is None else kept[:, first : first + span[1]]
        for chunk in range(span[1]):
            states[:, chunk] = state
            state = torch.addcmul(entries[:, chunk], block.whole[:, chunk], state)
        y = block.by_head(block.C @ block.states_by_group(states).transpose(-1, -2), heads) * block.steps(block.enter)
        y += (block.mixing @ block.inputs.transpose(2, 3)).transpose(2, 3)
        if D is not None:
            y.addcmul_(block.x, D)
        if ungated is not None:
            block.put(ungated, y)
        block.put(out, y if z is None else y * F.silu(block.take(z).to(A.dtype)))
    return out, state.clone(), ungated, kept


def backward(dout, dlast, x, dt, A, B, C, D, z, dt_bias, seq_idx, y, kept, chunk_size, softplus, low, high):
    """See `register.py`."""
    heads = x.shape[2]
    dx, ddt, dB, dC = (torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, dt, B, C))
    dz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    dA = torch.zeros_like(A)
    dD = None if D is None else A.new_zeros(D.shape)
    dbias = None if dt_bias is None else torch.zeros_like(dt_bias)
    starts = sequence_starts(seq_idx)
    # gradient of the state that leaves the chunk at hand
    carry = A.new_zeros(x.shape[0], *x.shape[2:], B.shape[3]) if dlast is None else dlast.to(A.dtype)
    for span in reversed(spans(x, chunk_size)):
        block = Block(x, dt, A, B, C, dt_bias, starts, softplus, low, high, span)
        dy = block.take(dout).to(A.dtype)
        if z is not None:
            dy, dgate = gate_gradients(dy, block.take(z).to(A.dtype), block.take(y))
            block.put(dz, dgate)
        first = span[0] // chunk_size
        states = kept[:, first : first + span[1]]
        entered = dy * block.steps(block.enter)
        through = block.summed(entered, block.C, heads)
        left = torch.empty_like(through)  # gradients of the states that leave the chunks
        for chunk in range(span[1] - 1, -1, -1):
            left[:, chunk] = carry
            carry = torch.addcmul(through[:, chunk], block.whole[:, chunk], carry)

        leaving = block.by_head(block.B @ block.states_by_group(left).transpose(-1, -2), heads)
        dmixing = dy.transpose(2, 3) @ block.inputs.permute(0, 1, 3, 4, 2)  # (b, n, h, q, q)
        dinputs = (block.mixing.transpose(-1, -2) @ dy.transpose(2, 3)).transpose(2, 3)
        dinputs = dinputs + leaving * block.steps(block.leave)
        dscores = (dmixing * block.pair).unflatten(2, (block.groups, -1)).sum(3)  # (b, n, g, q, q)
        into_C = dscores @ block.B + block.by_group(entered) @ block.states_by_group(states)
        left_inputs = block.by_group(block.inputs * block.steps(block.leave))
        into_B = dscores.transpose(-1, -2) @ block.C + left_inputs @ block.states_by_group(left)
        block.put(dC, into_C.transpose(2, 3))
        block.put(dB, into_B.transpose(2, 3))

        reached = block.by_head(block.C @ block.states_by_group(states).transpose(-1, -2), heads)
        dlogs = log_gradients(
            dmixing.mul_(block.mixing),
            (dy * reached).sum(-1).transpose(2, 3) * block.enter,
            (block.inputs * leaving).sum(-1).transpose(2, 3) * block.leave,
            (states * left).sum((-1, -2), keepdim=True) * block.whole,
        )
        ddelta = (dinputs * block.x).sum(-1).addcmul_(dlogs, A)
        dA += (dlogs * block.delta).sum((0, 1, 2))
        ddelta.mul_((block.unlimited >= low) & (block.unlimited <= high))
        draw = ddelta.mul_(torch.sigmoid(block.raw)) if softplus else ddelta
        block.put(ddt, draw)
        if dt_bias is not None:
            dbias += draw.sum((0, 1, 2))
        into_x = dinputs.mul_(block.delta.unsqueeze(-1))
        if D is not None:
            into_x.addcmul_(dy, D)
            dD += (dy * block.x).sum((0, 1, 2))
        block.put(dx, into_x)
    return dx, ddt, dA, dB, dC, dD, dz, dbias, carry.clone()


def gate_gradients(dout: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y and z, of y * silu(z)."""
    sigmoid = torch.sigmoid(z)
    gate = z * sigmoid
    return dout * gate, dout * y * (sigmoid + gate * (1 - sigmoid))


def log_gradients(pairs: Tensor, enter: Tensor, leave: Tensor, whole: Tensor) -> Tensor:
    """Gradients of the decays' logarithms (b, n, q, h) from those of their sums.

    The log of step k is in the sums of the pairs j < k <= i (b, n, h, q, q), of `enter` at k and after, of `leave`
    before k (b, n, h, q), and of the `whole` chunk (b, n, h, 1, 1). Every sum runs over its terms alone: none cancels.
    """
    logs = enter.flip(-1).cumsum(-1).flip(-1) + whole.squeeze(-1)
    before = pairs.tril_(-1).cumsum(-1).tril_(-1).sum(-2) + leave.cumsum(-1)
    logs[..., 1:] += before[..., :-1]
    return logs.transpose(2, 3)


def update(state, x, dt, A, B, C, D, z, dt_bias, softplus, low, high):
    """One step, differentiable: x, z (B, H, P), dt (B, H), B, C (B, G, N), state (B, H, P, N) -> y, new state."""
    batch, groups, states = B.shape
    wide, dt, B, C = (v.to(state.dtype) for v in (x, dt, B, C))
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (F.softplus(dt) if softplus else dt).clamp(low, high)
    with torch.autocast(x.device.type, enabled=False):
        entry = (dt.unsqueeze(-1) * wide).reshape(batch, groups, -1, 1) * B.unsqueeze(2)
        state = torch.addcmul(entry.view_as(state), torch.exp(dt * A)[..., None, None], state)
        y = (state.view(batch, groups, -1, states) @ C.unsqueeze(-1)).view_as(wide)
    y = y if D is None else torch.addcmul(y, D, wide)
    y = y if z is None else y * F.silu(z.to(y.dtype))
    return y.to(x.dtype), state
