# SPDX-License-Identifier: Apache-2.0
"""Two maps scanned as one sequence, and made one map (Sigma's ConMB, arXiv:2404.04256)."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from vlmamba.layers.fusion.squeeze import Squeeze
from vlmamba.layers.map_scan import MapScan
from vlmamba.layers.maps import convolved, depthwise, reset_convolution


class ConcatMamba(nn.Module):
    """The rows of both maps, one map after the other, are scanned there and back; the result is one map.

    in_proj -> depthwise convolution and SiLU -> selective scans of both maps together -> norm -> times the gate that
    the *other* map makes -> concatenated -> out_proj; added to the sum of the two maps.

    Args:
        hidden_size: width of both maps and of the result.
        scan: name of the scan of the two maps, one above the other; its orders have own parameters and are summed.
        state_size: N.
        conv_kernel: side of the depthwise convolutions, odd.
        expand: inner width D over `hidden_size`.
        time_step_rank: R, rank of the time step projections; ceil(hidden_size / 16) when None.
        reduction: D over the width inside of the gates, which is at least 1.
        eps: of the norms.
    """

    def __init__(
        self,
        hidden_size: int,
        scan: str | list[str] | tuple[str, ...] = "bidirectional",
        state_size: int = 4,
        conv_kernel: int = 3,
        expand: float = 2.0,
        time_step_rank: int | None = None,
        reduction: int = 16,
        eps: float = 1e-5,
    ):
        super().__init__()
        channels = int(expand * hidden_size)
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.in_proj = nn.Linear(hidden_size, channels, bias=False)
        self.in_proj_x = nn.Linear(hidden_size, channels, bias=False)
        self.conv2d = depthwise(channels, conv_kernel, bias=True)
        self.conv2d_x = depthwise(channels, conv_kernel, bias=True)
        self.scans = MapScan(channels, scan, state_size, rank)
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.norm_x = nn.LayerNorm(channels, eps=eps)
        self.gate = Squeeze(channels, max(channels // reduction, 1))
        self.gate_x = Squeeze(channels, max(channels // reduction, 1))
        self.out_proj = nn.Linear(2 * channels, hidden_size, bias=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Two maps `[B, h, w, hidden_size]` -> one of the same shape."""
        height, width = first.shape[1:3]
        projected, projected_x = self.in_proj(first), self.in_proj_x(second)
        maps = [convolved(self.conv2d, projected), convolved(self.conv2d_x, projected_x)]
        stacked = F.silu(torch.cat(maps, dim=1))  # one above the other
        y = self.scans(stacked.flatten(1, 2), (2 * height, width)).unflatten(1, (2 * height, width))
        y, y_x = y.chunk(2, dim=1)
        y = self.norm(y) * self.gate_x(projected_x.mean((1, 2), keepdim=True)).sigmoid()
        y_x = self.norm_x(y_x) * self.gate(projected.mean((1, 2), keepdim=True)).sigmoid()
        return first + second + self.out_proj(torch.cat([y, y_x], dim=-1))

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """As of VMamba's mixers: truncated normal for linear layers, Mamba's for the scans."""
        linears = (self.in_proj, self.in_proj_x, self.out_proj)
        for linear in (*linears, *self.gate.children(), *self.gate_x.children()):
            init.trunc_normal_(linear.weight, std=std)
        for conv in (self.conv2d, self.conv2d_x):
            reset_convolution(conv)
        self.scans.reset_parameters("mamba", std)
