# SPDX-License-Identifier: Apache-2.0
"""Mamba-1 (arXiv:2312.00752) inside transformers' models: mamba, falcon_mamba, jamba and zamba."""

import torch

from vlmamba.layers.mixer import KernelMixer
from vlmamba.ops import selective_scan, selective_state_update
from vlmamba.ops.numerics import widened

Tensor = torch.Tensor


class SelectiveMixer(KernelMixer):
    """mamba's mixer; the others differ in a method each."""

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """What the convolution reads, and the gate."""
        return projected.chunk(2, dim=-1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time steps, input and output matrix of tokens `[..., D]`."""
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        dt, B, C = self.normed(*self.x_proj(x).split(sizes, dim=-1))
        return self.dt_proj(dt), B, C

    def normed(self, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return dt, B, C

    def scan(
        self, x: Tensor, gate: Tensor, state: Tensor | None, seq_idx: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens `[B, L, D]` from the state on -> the gated result and the last state."""
        dt, B, C = self.project(x)
        options = {"seq_idx": seq_idx, "initial_state": state, "return_final_state": True}
        return selective_scan(x, _hidden(dt, valid), self._decay(), B, C, self.D, gate, **options)

    def advance(self, x: Tensor, gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`scan` for one token, `[B, D]`."""
        dt, B, C = self.project(x)
        return selective_state_update(state, x, dt, self._decay(), B, C, self.D, gate)

    def _decay(self) -> Tensor:
        return -torch.exp(widened(self.A_log))


class NormedSelectiveMixer(SelectiveMixer):
    """falcon_mamba's and jamba's: time steps and matrices are normed."""

    def normed(self, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.dt_layernorm(dt), self.b_layernorm(B), self.c_layernorm(C)


class HeadedSelectiveMixer(SelectiveMixer):
    """zamba's: every head has its own matrices, so that heads are directions which share no channel."""

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        return projected.unflatten(-1, (-1, 2)).unbind(-1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As above, of tokens `[B, K, L, D / K]`; the heads' weights are no modules."""
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        dt, B, C = (x @ self.x_proj_weight.transpose(1, 2)).split(sizes, dim=-1)
        return dt @ self.dt_proj_weight.transpose(1, 2), B, C

    def scan(
        self, x: Tensor, gate: Tensor, state: Tensor | None, seq_idx: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x, gate = (v.unflatten(-1, (self.n_mamba_heads, -1)).transpose(1, 2) for v in (x, gate))
        dt, B, C = self.project(x)
        dt = _hidden(dt, None if valid is None else valid.unsqueeze(1))
        options = {"merge": False, "seq_idx": seq_idx, "initial_state": state, "return_final_state": True}
        y, state = selective_scan(x, dt, self._decay(), B, C, self.D, gate, self.dt_proj_bias, **options)
        return y.transpose(1, 2).flatten(2), state

    def advance(self, x: Tensor, gate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.scan(x.unsqueeze(1), gate.unsqueeze(1), state, None, None)
        return y.squeeze(1), state


def _hidden(dt: Tensor, valid: Tensor | None) -> Tensor:
    """A time step of zero (after softplus) hides a token: the state neither decays nor takes it in."""
    return dt if valid is None else dt.masked_fill(~valid.unsqueeze(-1), torch.finfo(dt.dtype).min)
