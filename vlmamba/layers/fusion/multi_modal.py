# SPDX-License-Identifier: Apache-2.0
"""Deep fusion under the guidance of the modalities: MambaDFuse's M3 block (arXiv:2404.08406)."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.integrations.accelerate import force_accelerate_hooks
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmamba.layers.map_scan import reset_time_steps
from vlmamba.layers.maps import convolved, reset_convolution
from vlmamba.ops import causal_conv1d, selective_scan
from vlmamba.ops.numerics import widened


class MultiModalMixer(nn.Module):
    """in_proj -> causal convolution -> selective scan -> gate, of fused tokens and of every guide; summed -> out_proj.

    The branches share nothing but the output's projection, and the guides among them their state matrix A. All scans
    run in one call, forward along the rows.

    Args:
        hidden_size: width of the inputs and of the output.
        num_guides: token sequences beside the fused one.
        state_size: N.
        conv_kernel: taps of the convolutions.
        expand: inner width D over `hidden_size`.
        time_step_rank: rank of the time step projections; ceil(hidden_size / 16) when None.
    """

    def __init__(
        self,
        hidden_size: int,
        num_guides: int = 2,
        state_size: int = 16,
        conv_kernel: int = 4,
        expand: int = 2,
        time_step_rank: int | None = None,
    ):
        super().__init__()
        channels, branches = expand * hidden_size, 1 + num_guides
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.splits = (rank, state_size, state_size)
        self.in_projs = nn.ModuleList(nn.Linear(hidden_size, 2 * channels, bias=False) for _ in range(branches))
        # of all branches, one after the other
        inner = branches * channels
        self.conv1d = nn.Conv1d(inner, inner, conv_kernel, groups=inner, padding=conv_kernel - 1)
        self.x_projs = nn.ModuleList(nn.Linear(channels, sum(self.splits), bias=False) for _ in range(branches))
        self.dt_projs = nn.ModuleList(nn.Linear(rank, channels) for _ in range(branches))
        self.A_log = nn.Parameter(torch.empty(channels, state_size, dtype=torch.float32))
        self.guide_A_log = nn.Parameter(torch.empty(channels, state_size, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(branches, channels))
        self.out_proj = nn.Linear(channels, hidden_size, bias=False)

    @force_accelerate_hooks(["conv1d"])  # offloaded weights are brought in by calls; these are only read
    def forward(self, hidden_states: torch.Tensor, *guides: torch.Tensor) -> torch.Tensor:
        """Mix the fused tokens with their guides.

        Args:
            hidden_states: `[B, L, hidden_size]`.
            guides: `num_guides` sequences of that shape.

        Returns:
            `[B, L, hidden_size]`.

        Raises:
            ValueError: another number of guides, or their shapes differ.
        """
        branches = len(self.in_projs)
        inputs = _as_many(branches, hidden_states, *guides)
        projected = torch.stack([proj(v) for proj, v in zip(self.in_projs, inputs, strict=True)], dim=1)
        x, z = projected.chunk(2, dim=-1)  # [B, K, L, D]
        weight, bias = (v.unflatten(0, (branches, -1)) for v in (self.conv1d.weight.squeeze(1), self.conv1d.bias))
        x = causal_conv1d(x, weight, bias, activation="silu")
        steps, B, C = zip(
            *(proj(x[:, k]).split(self.splits, dim=-1) for k, proj in enumerate(self.x_projs)), strict=True
        )
        dt = [proj(v) for proj, v in zip(self.dt_projs, steps, strict=True)]
        dt, B, C = (torch.stack(parts, dim=1) for parts in (dt, B, C))
        A = -torch.exp(torch.stack([widened(self.A_log), *[widened(self.guide_A_log)] * (branches - 1)]))
        return self.out_proj(selective_scan(x, dt, A, B, C, self.D, z, merge=False).sum(1))

    @torch.no_grad()
    def reset_parameters(self, depth: int = 1) -> None:
        """Mamba's initialisation; out_proj shrinks with the number of mixers on the residual stream."""
        for proj in (*self.in_projs, *self.x_projs):
            init.kaiming_uniform_(proj.weight, a=math.sqrt(5))
        init.kaiming_uniform_(self.conv1d.weight, a=math.sqrt(5))
        init.zeros_(self.conv1d.bias)
        for proj in self.dt_projs:
            reset_time_steps(proj)
        channels, size = self.A_log.shape
        for A_log in (self.A_log, self.guide_A_log):
            states = torch.arange(1, size + 1, dtype=torch.float32, device=A_log.device)
            init.copy_(A_log, torch.log(states).expand(channels, size))
        init.ones_(self.D)
        bound = 1 / math.sqrt(channels * depth)
        init.uniform_(self.out_proj.weight, -bound, bound)


class MultiModalFusion(GradientCheckpointingLayer):
    """norms -> `MultiModalMixer` -> y + depthwise 3 x 3 convolution of the map of y.

    Every norm is applied twice, with the same weights: so the published models were trained.

    Args:
        hidden_size: width of the tokens.
        num_guides: token sequences beside the fused one.
        eps: of the norms.
        sizes: further arguments of `MultiModalMixer`.
    """

    def __init__(self, hidden_size: int, num_guides: int = 2, eps: float = 1e-5, **sizes: int | None):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size, eps=eps) for _ in range(1 + num_guides))
        self.mixer = MultiModalMixer(hidden_size, num_guides, **sizes)
        self.conv = nn.Conv2d(hidden_size, hidden_size, 3, padding=1, groups=hidden_size)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], *guides: torch.Tensor) -> torch.Tensor:
        """What is to be added to the fused stream.

        Args:
            hidden_states: `[B, h * w, hidden_size]`, the stream.
            grid: h and w.
            guides: `num_guides` of that shape.

        Returns:
            `[B, h * w, hidden_size]`, without the stream itself: a last block may go on from it alone.

        Raises:
            ValueError: another number of guides, or their shapes differ.
        """
        inputs = _as_many(len(self.norms), hidden_states, *guides)
        mixed = self.mixer(*(norm(norm(v)) for norm, v in zip(self.norms, inputs, strict=True)))
        return mixed + convolved(self.conv, mixed.unflatten(1, grid)).flatten(1, 2)

    @torch.no_grad()
    def reset_parameters(self, depth: int = 1) -> None:
        """The mixer's, and PyTorch's of the convolution."""
        self.mixer.reset_parameters(depth)
        reset_convolution(self.conv)


def _as_many(branches: int, hidden_states: torch.Tensor, *guides: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Fused tokens and guides, once they are as many as the branches and of one shape."""
    shape, shapes = tuple(hidden_states.shape), [tuple(guide.shape) for guide in guides]
    if shapes != [shape] * (branches - 1):
        raise ValueError(f"guides have shapes {shapes}, expected {branches - 1} of {shape}")
    return hidden_states, *guides
