# SPDX-License-Identifier: Apache-2.0
"""One mixer over K scan orders: the block that the Vision Mamba families share."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.integrations.accelerate import force_accelerate_hooks

from vlmamba.layers.map_scan import reset_time_steps
from vlmamba.layers.merging import make_merge, reset_merge
from vlmamba.ops import causal_conv1d, selective_scan
from vlmamba.ops.numerics import widened

# a time step so far below zero that its softplus is 0: the state passes the row by
_NO_STEP = -1e4


class ScanDirection(nn.Module):
    """The parameters of one selective scan: convolution, B/C/dt projections, state matrix and skip.

    Args:
        channels: D, width of the scanned sequence.
        state_size: N.
        conv_kernel: taps W of the causal depthwise convolution.
        time_step_rank: rank of the time step projection.
    """

    def __init__(self, channels: int, state_size: int, conv_kernel: int, time_step_rank: int):
        super().__init__()
        self.splits = (time_step_rank, state_size, state_size)
        self.conv1d = nn.Conv1d(channels, channels, conv_kernel, groups=channels, padding=conv_kernel - 1)
        self.x_proj = nn.Linear(channels, sum(self.splits), bias=False)
        self.dt_proj = nn.Linear(time_step_rank, channels)
        self.A_log = nn.Parameter(torch.empty(channels, state_size, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(channels))

    @force_accelerate_hooks(["conv1d"])  # offloaded weights are brought in by calls; these are only read
    def forward(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """log(-A) `[D, N]`, skip `[D]`, and the convolution's weight `[D, 1, W]` and bias `[D]`."""
        # no views of parameters: under no_grad, torch's FlopCounterMode fails at modules that return some
        return widened(self.A_log), self.D, self.conv1d.weight, self.conv1d.bias

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`[B, L, D]` -> dt `[B, L, D]`, B `[B, L, N]`, C `[B, L, N]`; each projection is called as a module."""
        dt, B, C = self.x_proj(x).split(self.splits, dim=-1)
        return self.dt_proj(dt), B, C

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba's initialisation: A = -(1..N), D = 1, softplus(dt bias) log-uniform in [1e-3, 1e-1]."""
        init.kaiming_uniform_(self.x_proj.weight, a=math.sqrt(5))
        init.kaiming_uniform_(self.conv1d.weight, a=math.sqrt(5))
        init.zeros_(self.conv1d.bias)
        channels, size = self.A_log.shape
        states = torch.arange(1, size + 1, dtype=torch.float32, device=self.A_log.device)
        init.copy_(self.A_log, torch.log(states).expand(channels, size))
        init.ones_(self.D)
        reset_time_steps(self.dt_proj)


class VisionMixer(nn.Module):
    """in_proj -> causal convolution -> selective scan along K orders, merged -> gate -> out_proj.

    Vim (arXiv:2401.09417, algorithm 1) is two orders with their own parameters; one parameter set for all orders
    is VL-Mamba's "one Mamba layer" (arXiv:2403.13600).

    Args:
        hidden_size: width of the input and output.
        num_paths: K, the number of scan orders given to `forward`.
        state_size: N.
        conv_kernel: taps of the convolution, which runs along each order.
        expand: inner width over `hidden_size`.
        time_step_rank: rank of the time step projection; ceil(hidden_size / 16) when None.
        shared: "none" gives every order its own parameters, "all" shares one set, "inputs" shares all but A and
            convolves along the first order only (Vim's bimamba v1).
        merge: how the orders become one, of `vlmamba.layers.merging.MERGES`.
        layer_scale: initial value of a learned scale per output channel; none when None.
    """

    def __init__(
        self,
        hidden_size: int,
        num_paths: int,
        state_size: int = 16,
        conv_kernel: int = 4,
        expand: int = 2,
        time_step_rank: int | None = None,
        shared: str = "none",
        merge: str = "sum",
        layer_scale: float | None = None,
    ):
        super().__init__()
        if shared not in ("none", "all", "inputs"):
            raise ValueError(f"VisionMixer: shared is {shared!r}, expected 'none', 'all' or 'inputs'")
        channels = expand * hidden_size
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.num_paths, self.shared, self.average = num_paths, shared, merge == "mean"
        self.in_proj = nn.Linear(hidden_size, 2 * channels, bias=False)
        self.directions = nn.ModuleList(
            ScanDirection(channels, state_size, conv_kernel, rank) for _ in range(num_paths if shared == "none" else 1)
        )
        if shared == "inputs":
            self.other_A_log = nn.Parameter(torch.empty(num_paths - 1, channels, state_size, dtype=torch.float32))
        self.merge = make_merge(merge, channels, num_paths)
        self.out_proj = nn.Linear(channels, hidden_size, bias=False)
        self.layer_scale_value = layer_scale
        if layer_scale is not None:
            self.layer_scale = nn.Parameter(torch.empty(hidden_size))

    def forward(
        self,
        hidden_states: torch.Tensor,
        paths: torch.Tensor,
        num_padding: int = 0,
        token_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mix tokens.

        Args:
            hidden_states: `[B, L, hidden_size]`, in rows.
            paths: int `[K, T]`, the scan orders.
            num_padding: rows of zeros that follow the L in `paths`: steps that are convolved and scanned, but given up.
            token_mask: bool `[B, L]`; where it is False, the scans pass the row by (its time step is 0) and the
                convolutions read 0 for it.

        Returns:
            `[B, L, hidden_size]`, in rows; what masked rows hold means nothing.
        """
        length = hidden_states.shape[1]
        projected = self.in_proj(hidden_states)
        x, z = (F.pad(projected, (0, 0, 0, num_padding)) if num_padding else projected).chunk(2, dim=-1)
        if token_mask is not None:
            token_mask = F.pad(token_mask, (0, num_padding), value=True).unsqueeze(-1)
            x = x * token_mask
        own = [direction() for direction in self.directions]
        each = own * (self.num_paths // len(own))  # shared parameters serve every direction
        A_log, skip, weight, bias = (torch.stack(parts) for parts in zip(*each, strict=True))
        weight = weight.squeeze(2)  # [K, D, W]
        if self.shared == "inputs":
            A_log = torch.cat([A_log[:1], widened(self.other_A_log)])
            x = causal_conv1d(x, weight[:1], bias[:1], activation="silu", paths=paths[:1]).squeeze(1)
            dt, B, C = self.directions[0].project(x)
        else:
            x = causal_conv1d(x, weight, bias, activation="silu", paths=paths)
            inputs = [self.directions[k % len(own)].project(x[:, k]) for k in range(self.num_paths)]
            dt, B, C = (torch.stack(parts, dim=1) for parts in zip(*inputs, strict=True))
        if token_mask is not None:
            dt = dt.masked_fill(~(token_mask if dt.dim() == 3 else token_mask.unsqueeze(1)), _NO_STEP)
        A = -torch.exp(A_log)
        if self.merge is None:
            y = selective_scan(x, dt, A, B, C, skip, z, paths=paths)[:, :length]
        else:
            y = selective_scan(x, dt, A, B, C, skip, paths=paths, merge=False)
            y = self.merge((y * F.silu(z).unsqueeze(1))[:, :, :length])
        out = self.out_proj(y / self.num_paths if self.average else y)
        return out if self.layer_scale_value is None else out * self.layer_scale

    @torch.no_grad()
    def reset_parameters(self, depth: int = 1) -> None:
        """The published initialisation; out_proj shrinks with the number of mixers on the residual stream."""
        init.kaiming_uniform_(self.in_proj.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.out_proj.in_features * depth)
        init.uniform_(self.out_proj.weight, -bound, bound)
        for direction in self.directions:
            direction.reset_parameters()
        reset_merge(self.merge)
        if self.shared == "inputs":
            init.copy_(self.other_A_log, self.directions[0].A_log.expand_as(self.other_A_log))
        if self.layer_scale_value is not None:
            init.constant_(self.layer_scale, self.layer_scale_value)
