# SPDX-License-Identifier: Apache-2.0
"""SS2D: VMamba's mixer over an image, several selective scans of one map (arXiv:2401.10166)."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from vlmamba.ops import selective_scan
from vlmamba.ops.numerics import widened
from vlmamba.scans import get_scan

GATES = ("none", "activated", "linear")
OUT_NORMS = ("layer_norm", "conv", "layer_norm_conv", "softmax", "sigmoid", "none")
INITIALIZATIONS = ("mamba", "normal", "uniform")


class SS2D(nn.Module):
    """in_proj -> depthwise convolution -> selective scans in K orders, summed -> norm -> gate -> out_proj.

    Maps are channel-last. Every order has its own parameters; all read the same rows, so that the projections are
    computed once and nothing is permuted.

    Args:
        hidden_size: width of the input and output.
        scan: name of the scan, of K orders.
        cascade: scan every row by itself, both ways, and then every column of the (normed) result; `scan` must be
            "cross_scan", of which the orders are. As in VMamba, what the ways back give stays mirrored.
        state_size: N.
        conv_kernel: side of the depthwise convolution, odd; 1 for none.
        conv_bias: whether it has a bias.
        expand: inner width D over `hidden_size`.
        time_step_rank: R, rank of the time step projections; ceil(hidden_size / 16) when None.
        hidden_act: activation after the convolution and of the gate.
        gate: "activated" multiplies the result by an activated projection of the input, "linear" by the bare one,
            "none" by nothing.
        out_norm: what follows the scans: one of `OUT_NORMS`. "softmax" is over the positions, "conv" a depthwise one.
        activate_output: GELU after that.
        dropout: of the output.
        eps: of the norms.
    """

    def __init__(
        self,
        hidden_size: int,
        scan: str = "cross_scan",
        cascade: bool = False,
        state_size: int = 16,
        conv_kernel: int = 3,
        conv_bias: bool = True,
        expand: float = 2.0,
        time_step_rank: int | None = None,
        hidden_act: str = "silu",
        gate: str = "activated",
        out_norm: str = "layer_norm",
        activate_output: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        if cascade and scan != "cross_scan":
            raise ValueError(f"SS2D: scan is {scan!r}, expected 'cross_scan' with cascade")
        channels, directions = int(expand * hidden_size), get_scan(scan).num_paths
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.scan, self.cascade, self.gate, self.out_norm_type = scan, cascade, gate, out_norm
        self.splits = (rank, state_size, state_size)
        self.in_proj = nn.Linear(hidden_size, channels if gate == "none" else 2 * channels, bias=False)
        self.conv2d = None
        if conv_kernel > 1:
            self.conv2d = _depthwise(channels, conv_kernel, conv_bias)
        self.act = ACT2FN[hidden_act]
        # one product for all directions; their time steps, input and output matrices follow one another
        self.x_proj = nn.Linear(channels, directions * sum(self.splits), bias=False)
        self.dt_projs = nn.ModuleList(nn.Linear(rank, channels) for _ in range(directions))
        self.A_log = nn.Parameter(torch.empty(directions, channels, state_size))
        self.D = nn.Parameter(torch.empty(directions, channels))
        self.out_norm = nn.LayerNorm(channels, eps=eps) if out_norm.startswith("layer_norm") else None
        self.out_conv = _depthwise(channels, 3, bias=False) if out_norm.endswith("conv") else None
        self.out_act = nn.GELU() if activate_output else nn.Identity()
        self.out_proj = nn.Linear(channels, hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, hidden_size]` -> the same shape."""
        x, gate = self.in_proj(hidden_states), None
        if self.gate != "none":
            x, gate = x.chunk(2, dim=-1)
        x = self.act(x if self.conv2d is None else _convolved(self.conv2d, x))
        scan = self._cascade if self.cascade else self._scan
        grid = x.shape[1:3]
        y = self.out_act(self._normed(scan(x.flatten(1, 2), grid).unflatten(1, grid)))
        if gate is not None:
            y = y * (self.act(gate) if self.gate == "activated" else gate)
        return self.dropout(self.out_proj(y))

    def _scan(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Rows `[B, L, D]` of a grid (h, w) scanned in all orders and summed."""
        return self._along(x, get_scan(self.scan).paths(*grid, device=x.device), slice(None))

    def _cascade(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Lines are sequences that follow one another: the state restarts where the number of the line changes."""
        paths = get_scan(self.scan).paths(*grid, device=x.device)
        position = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
        rows, columns = position // grid[1], position % grid[1]
        for first, line, across in ((0, rows, 2), (1, columns, 1)):
            order = slice(first, None, 2)  # there and back
            x = nn.functional.layer_norm(x, x.shape[-1:], eps=self.eps)
            y = self._along(x, paths[order], order, merge=False, seq_idx=line.expand(len(x), -1))
            there, back = y.unflatten(2, grid).unbind(1)
            # the published models were trained so: what the way back gives stays mirrored within its line
            x = (there + back.flip(across)).flatten(1, 2)
        return x

    def _along(self, x: torch.Tensor, paths: torch.Tensor, order: slice, **options: object) -> torch.Tensor:
        """The selective scans of the directions `order` along their `paths`."""
        projected = self.x_proj(x).unflatten(-1, (len(self.dt_projs), -1)).transpose(1, 2)[:, order]
        dt, B, C = projected.split(self.splits, dim=-1)
        dt = torch.stack([project(dt[:, k]) for k, project in enumerate(self.dt_projs[order])], dim=1)
        A = -torch.exp(widened(self.A_log[order]))
        return selective_scan(x, dt, A, B, C, self.D[order], paths=paths, **options)

    def _normed(self, y: torch.Tensor) -> torch.Tensor:
        if self.out_norm is not None:
            y = self.out_norm(y)
        if self.out_conv is not None:
            y = _convolved(self.out_conv, y)
        if self.out_norm_type == "softmax":
            return y.flatten(1, 2).softmax(1).unflatten(1, y.shape[1:3])
        return y.sigmoid() if self.out_norm_type == "sigmoid" else y

    @torch.no_grad()
    def reset_parameters(self, initialization: str = "mamba", std: float = 0.02) -> None:
        """The published initialisation, of time steps and state matrix one of `INITIALIZATIONS`.

        "mamba" is A = -(1..N) and softplus(dt bias) log-uniform in [1e-3, 1e-1]; "normal" and "uniform" are VMamba's
        simple ones.
        """
        for linear in (self.in_proj, self.out_proj):
            init.trunc_normal_(linear.weight, std=std)
        for conv in (self.conv2d, self.out_conv):
            if conv is not None:
                reset_convolution(conv)
        init.kaiming_uniform_(self.x_proj.weight, a=math.sqrt(5))
        init.ones_(self.D)
        if initialization == "mamba":
            states = torch.arange(1, self.splits[1] + 1, dtype=torch.float32, device=self.A_log.device)
            init.copy_(self.A_log, torch.log(states).expand_as(self.A_log))
        elif initialization == "normal":
            init.normal_(self.A_log)
        else:
            init.zeros_(self.A_log)
        for project in self.dt_projs:
            self._reset_time_steps(project, initialization)

    def _reset_time_steps(self, project: nn.Linear, initialization: str) -> None:
        if initialization == "normal":
            init.normal_(project.weight, std=0.1)
            init.normal_(project.bias, std=0.1)
        elif initialization == "uniform":
            init.uniform_(project.weight, 0, 0.1)
            init.uniform_(project.bias, 0, 0.1)
        else:
            bound = self.splits[0] ** -0.5
            init.uniform_(project.weight, -bound, bound)
            low, high = math.log(1e-3), math.log(1e-1)
            dt = torch.exp(torch.rand_like(project.bias, dtype=torch.float32) * (high - low) + low)
            init.copy_(project.bias, dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus


def _depthwise(channels: int, side: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels, bias=bias)


def _convolved(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A convolution of a channel-last map; permuting is free, as PyTorch convolves that layout too."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def reset_convolution(conv: nn.Conv2d) -> None:
    """PyTorch's initialisation of a convolution."""
    init.kaiming_uniform_(conv.weight, a=math.sqrt(5))
    if conv.bias is not None:
        bound = (conv.weight[0].numel()) ** -0.5
        init.uniform_(conv.bias, -bound, bound)
