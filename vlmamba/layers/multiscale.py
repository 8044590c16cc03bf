# SPDX-License-Identifier: Apache-2.0
"""MSVMamba's parts: a mixer that scans a map once whole and its other orders on a smaller one (arXiv:2405.14174)."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from vlmamba.layers.map_scan import MapScan
from vlmamba.layers.maps import SqueezeExcite, convolved, depthwise
from vlmamba.scans import get_scan

ScanName = str | list[str] | tuple[str, ...]


class ChainedScan(MapScan):
    """Orders that follow one another as one sequence: one set of parameters, the state runs on from one to the next.

    The arguments are those of `MapScan`; nothing is merged.
    """

    def __init__(self, channels: int, scan: ScanName, state_size: int, time_step_rank: int):
        super().__init__(channels, get_scan(scan).joined(), state_size, time_step_rank)
        self.scan = scan
        for k in range(get_scan(scan).num_paths):
            get_scan(scan).only(k)  # made before `torch.compile` may ask for it

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`[B, L, D]` -> `[B, K, L, D]`: what each order gave for every row."""
        scan, operands = get_scan(self.scan), self.operands(x)
        given, state = [], None
        for k in range(scan.num_paths):
            paths = scan.only(k).paths(*grid, device=x.device)
            y, state = self.scanned(x, operands, paths, initial_state=state, return_final_state=True)
            given.append(y)
        return torch.stack(given, dim=1)


class ConvMLP(nn.Module):
    """fc2(gelu(y + conv(y))) with y = fc1(x): an MLP with a depthwise 3 x 3 convolution in the middle."""

    def __init__(self, channels: int, ratio: float, dropout: float = 0.0):
        super().__init__()
        inner = int(channels * ratio)
        self.fc1 = nn.Linear(channels, inner)
        self.conv = depthwise(inner, 3, bias=True)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(inner, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, D]` -> the same shape."""
        x = self.dropout(self.fc1(x))
        return self.dropout(self.fc2(self.act(x + convolved(self.conv, x))))


class MultiScaleSS2D(nn.Module):
    """SS2D in which some orders read the map and the others, as one sequence, a smaller one.

    in_proj -> two depthwise convolutions of the same input, one of them strided -> a scan of each map, normed; the
    smaller one is resized and added -> squeeze and excitation -> gate -> out_proj. Maps are channel-last.

    Args:
        hidden_size: width of the input and output.
        scan: name of the scan of the map; its orders have own parameters and are summed.
        low_scan: of the smaller map; its orders share parameters and follow one another (`ChainedScan`).
        low_stride: how much smaller, in each direction.
        state_size: N.
        conv_kernel, low_conv_kernel: sides of the two convolutions, odd.
        conv_bias: whether they have a bias.
        expand: inner width D over `hidden_size`.
        time_step_rank: R, rank of the time step projections; ceil(hidden_size / 16) when None.
        hidden_act: activation after the convolutions and of the gate.
        squeeze_reduction: D over the inner width of the squeeze and excitation; 0 for none.
        dropout: of the output.
        eps: of the norm, which both maps share.
    """

    def __init__(
        self,
        hidden_size: int,
        scan: ScanName = "raster",
        low_scan: ScanName = ("raster_reversed", "column", "column_reversed"),
        low_stride: int = 2,
        state_size: int = 1,
        conv_kernel: int = 3,
        low_conv_kernel: int = 7,
        conv_bias: bool = True,
        expand: float = 2.0,
        time_step_rank: int | None = None,
        hidden_act: str = "silu",
        squeeze_reduction: int = 8,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        channels = int(expand * hidden_size)
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.in_proj = nn.Linear(hidden_size, 2 * channels, bias=False)
        self.conv2d = depthwise(channels, conv_kernel, conv_bias)
        self.low_conv2d = depthwise(channels, low_conv_kernel, conv_bias, low_stride)
        self.act = ACT2FN[hidden_act]
        self.scans = MapScan(channels, scan, state_size, rank)
        self.low_scans = ChainedScan(channels, low_scan, state_size, rank)
        self.out_norm = nn.LayerNorm(channels, eps=eps)
        self.squeeze = nn.Identity()
        if squeeze_reduction:
            self.squeeze = SqueezeExcite(channels, channels // squeeze_reduction, bias=False)
        self.out_proj = nn.Linear(channels, hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, hidden_size]` -> the same shape."""
        x, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        whole, low = (self.act(convolved(conv, x)) for conv in (self.conv2d, self.low_conv2d))
        grid, low_grid = whole.shape[1:3], low.shape[1:3]
        y = self.out_norm(self.scans(whole.flatten(1, 2), grid)).unflatten(1, grid)
        low = self.out_norm(self.low_scans(low.flatten(1, 2), low_grid)).sum(1).unflatten(1, low_grid)
        low = F.interpolate(low.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
        y = self.squeeze(y + low.permute(0, 2, 3, 1))
        return self.dropout(self.out_proj(y * self.act(gate)))

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """The published initialisation of the scans and projections."""
        for linear in (self.in_proj, self.out_proj):
            init.trunc_normal_(linear.weight, std=std)
        for scans in (self.scans, self.low_scans):
            scans.reset_parameters("mamba", std)
