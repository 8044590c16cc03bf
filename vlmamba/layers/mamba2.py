# SPDX-License-Identifier: Apache-2.0
"""Mamba-2 (arXiv:2405.21060) of transformers' mamba2, bamba, zamba2, nemotron_h, granitemoehybrid and falcon_h1."""

import torch
import torch.nn.functional as F

from vlmamba.layers.mixer import KernelMixer
from vlmamba.ops import ssd_scan, ssd_update
from vlmamba.ops.numerics import widened

Tensor = torch.Tensor


class DualMixer(KernelMixer):
    """All of them but falcon_h1."""

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the convolution reads, the gate, and the time steps."""
        gate, x, dt = projected.split([self.intermediate_size, self.conv_dim, self.num_heads], dim=-1)
        return x, gate, dt

    def operands(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[..., conv_dim]` -> x `[..., H, P]`, B and C `[..., G, N]`."""
        matrix = self.n_groups * self.ssm_state_size
        x, B, C = mixed.split([self.intermediate_size, matrix, matrix], dim=-1)
        leading = mixed.shape[:-1]
        B, C = (v.view(*leading, self.n_groups, -1) for v in (B, C))
        return x.view(*leading, self.num_heads, -1), B, C

    def scan(
        self,
        mixed: Tensor,
        gate: Tensor,
        dt: Tensor,
        state: Tensor | None,
        seq_idx: Tensor | None,
        valid: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens `[B, L, conv_dim]` from the state on -> the gated, normed result and the last state."""
        x, B, C = self.operands(mixed)
        options = {"dt_bias": self.dt_bias, "dt_limit": self.time_step_limit}
        if valid is not None:
            # a time step of zero hides a token; the limits would lift it
            dt = F.softplus(widened(dt) + self.dt_bias).clamp(*self.time_step_limit)
            dt = dt.masked_fill(~valid.unsqueeze(-1), 0)
            options = {"dt_softplus": False}
        y, state = ssd_scan(
            x,
            dt,
            self._decay(),
            B,
            C,
            self.D,
            self.gate_of_scan(gate),
            seq_idx=seq_idx,
            initial_state=state,
            return_final_state=True,
            **options,
        )
        return self.finish(y.flatten(-2), gate), state

    def advance(self, mixed: Tensor, gate: Tensor, dt: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`scan` for one token, `[B, conv_dim]`."""
        x, B, C = self.operands(mixed)
        options = {"dt_bias": self.dt_bias, "dt_limit": self.time_step_limit}
        y, state = ssd_update(state, x, dt, self._decay(), B, C, self.D, self.gate_of_scan(gate), **options)
        return self.finish(y.flatten(-2), gate), state

    def gate_of_scan(self, gate: Tensor) -> Tensor | None:
        """The gate, where no norm applies it."""
        return None

    def finish(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.norm(y, gate)

    def _decay(self) -> Tensor:
        return -torch.exp(widened(self.A_log))


class ScaledDualMixer(DualMixer):
    """falcon_h1's: fixed multipliers, and a norm only where the config wants one."""

    def project_in(self, hidden_states: Tensor) -> Tensor:
        return self.in_proj(hidden_states * self.ssm_in_multiplier) * self.mup_vector.flatten()

    def gate_of_scan(self, gate: Tensor) -> Tensor | None:
        return None if self.mamba_rms_norm else gate.unflatten(-1, (self.num_heads, -1))

    def finish(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.norm(y, gate) if self.mamba_rms_norm else y
