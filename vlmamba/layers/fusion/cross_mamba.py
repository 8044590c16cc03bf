# SPDX-License-Identifier: Apache-2.0
"""Two maps that read each other's states (Sigma's CroMB, arXiv:2404.04256)."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.integrations.accelerate import force_accelerate_hooks

from vlmamba.layers.map_scan import MapScan
from vlmamba.layers.maps import convolved, depthwise, reset_convolution
from vlmamba.scans import get_scan


class CrossMamba(nn.Module):
    """Each map is scanned with its own parameters, and its states are read with the other map's C; both residual.

    in_proj -> one depthwise convolution for both maps and SiLU -> selective scan, C exchanged -> norm -> out_proj.

    Args:
        hidden_size: width of both maps.
        scan: name of the scan; its orders have own parameters and are summed.
        state_size: N.
        conv_kernel: side of the depthwise convolution, odd.
        expand: inner width over `hidden_size`.
        time_step_rank: R, rank of the time step projections; ceil(hidden_size / 16) when None.
        eps: of the norms.
    """

    def __init__(
        self,
        hidden_size: int,
        scan: str | list[str] | tuple[str, ...] = "raster",
        state_size: int = 4,
        conv_kernel: int = 3,
        expand: float = 2.0,
        time_step_rank: int | None = None,
        eps: float = 1e-5,
    ):
        super().__init__()
        channels = int(expand * hidden_size)
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.in_proj = nn.Linear(hidden_size, channels, bias=False)
        self.in_proj_x = nn.Linear(hidden_size, channels, bias=False)
        self.conv2d = depthwise(channels, conv_kernel, bias=True)
        self.scans = MapScan(channels, scan, state_size, rank)
        self.scans_x = MapScan(channels, scan, state_size, rank)
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.norm_x = nn.LayerNorm(channels, eps=eps)
        self.out_proj = nn.Linear(channels, hidden_size, bias=False)
        self.out_proj_x = nn.Linear(channels, hidden_size, bias=False)

    @force_accelerate_hooks(["scans", "scans_x"])  # offloaded weights are brought in by calls; these are only read
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two maps `[B, h, w, hidden_size]` -> two of the same shape."""
        grid = tuple(first.shape[1:3])
        paths = get_scan(self.scans.scan).paths(*grid, device=first.device)
        rows = F.silu(convolved(self.conv2d, self.in_proj(first))).flatten(1, 2)
        rows_x = F.silu(convolved(self.conv2d, self.in_proj_x(second))).flatten(1, 2)
        dt, A, B, C, D = self.scans.operands(rows)
        dt_x, A_x, B_x, C_x, D_x = self.scans_x.operands(rows_x)
        y = self.scans.scanned(rows, (dt, A, B, C_x, D), paths)
        y_x = self.scans_x.scanned(rows_x, (dt_x, A_x, B_x, C, D_x), paths)
        first = first + self.out_proj(self.norm(y)).unflatten(1, grid)
        return first, second + self.out_proj_x(self.norm_x(y_x)).unflatten(1, grid)

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """As of VMamba's mixers: truncated normal for linear layers, Mamba's for the scans."""
        for linear in (self.in_proj, self.in_proj_x, self.out_proj, self.out_proj_x):
            init.trunc_normal_(linear.weight, std=std)
        reset_convolution(self.conv2d)
        for scans in (self.scans, self.scans_x):
            scans.reset_parameters("mamba", std)
