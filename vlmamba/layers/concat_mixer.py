# SPDX-License-Identifier: Apache-2.0
"""MambaVision's mixer: a scanned half and a convolved half, side by side (arXiv:2407.08083)."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.integrations.accelerate import force_accelerate_hooks

from vlmamba.layers.map_scan import MapScan
from vlmamba.layers.maps import convolved
from vlmamba.scans import get_scan


class ConcatMixer(nn.Module):
    """in_proj -> symmetric convolution and SiLU -> one half scanned, the other as it is -> concatenated -> out_proj.

    The convolution is along the rows of the flattened map and sees as many steps ahead as behind. The bias of the time
    steps acts twice, as the published models were trained so.

    Args:
        hidden_size: width of the input and output.
        scan: name of the scan; its orders have own parameters and are summed.
        state_size: N.
        conv_kernel: taps of the convolution, odd.
        expand: width of both halves together over `hidden_size`.
        time_step_rank: R, rank of the time step projections; ceil(hidden_size / 16) when None.
    """

    def __init__(
        self,
        hidden_size: int,
        scan: str | list[str] | tuple[str, ...] = "raster",
        state_size: int = 8,
        conv_kernel: int = 3,
        expand: float = 1.0,
        time_step_rank: int | None = None,
    ):
        super().__init__()
        half = int(expand * hidden_size) // 2
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.in_proj = nn.Linear(hidden_size, 2 * half, bias=False)
        # of a map of one row: PyTorch's fastest way to convolve channel-last sequences
        taps, padding = (1, conv_kernel), (0, conv_kernel // 2)
        self.conv = nn.Conv2d(2 * half, 2 * half, taps, padding=padding, groups=2 * half, bias=False)
        self.act = nn.SiLU()
        self.scans = MapScan(half, scan, state_size, rank)
        self.out_proj = nn.Linear(2 * half, hidden_size, bias=False)

    @force_accelerate_hooks(["scans"])  # offloaded weights are brought in by calls; the scan's are only read
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, hidden_size]` -> the same shape."""
        grid = tuple(hidden_states.shape[1:3])
        rows = self.in_proj(hidden_states).flatten(1, 2)
        x, y = self.act(convolved(self.conv, rows.unsqueeze(1))).squeeze(1).chunk(2, dim=-1)
        paths = get_scan(self.scans.scan).paths(*grid, device=x.device)
        x = self.scans.along(x, paths, dt_bias=self.scans.time_step_biases(x))
        return self.out_proj(torch.cat([x, y], dim=-1)).unflatten(1, grid)

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """The published initialisation, which draws all linear layers alike, those of the time steps too."""
        self.scans.reset_parameters("mamba", std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    init.zeros_(module.bias)
