# SPDX-License-Identifier: Apache-2.0
"""SS2D: VMamba's mixer over an image, several selective scans of one map (arXiv:2401.10166)."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations.accelerate import force_accelerate_hooks

from vlmamba.layers.map_scan import HeadwiseMapScan, MapScan
from vlmamba.layers.maps import convolved, depthwise, reset_convolution
from vlmamba.scans import get_scan

GATES = ("none", "activated", "linear")
OUT_NORMS = ("layer_norm", "conv", "layer_norm_conv", "softmax", "sigmoid", "none")


class SS2D(nn.Module):
    """in_proj -> depthwise convolution -> selective scans in K orders, merged -> norm -> gate -> out_proj.

    Maps are channel-last.

    Args:
        hidden_size: width of the input and output.
        scan: name of the scan, or of several that are combined, of K orders with own parameters.
        merge: how the orders become one, of `vlmamba.layers.merging.MERGES`.
        headwise: `scan` names one scan for every head, a share of the channels.
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
        input_size: width of the input where it is another than the output's `hidden_size`.
    """

    def __init__(
        self,
        hidden_size: int,
        scan: str | list[str] | tuple[str, ...] = "cross_scan",
        merge: str = "sum",
        headwise: bool = False,
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
        input_size: int | None = None,
    ):
        super().__init__()
        if cascade and (scan != "cross_scan" or merge != "sum"):
            raise ValueError(
                f"SS2D: scan is {scan!r} and merge {merge!r}, expected 'cross_scan' and 'sum' with cascade"
            )
        channels = int(expand * hidden_size)
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.cascade, self.gate, self.out_norm_type = cascade, gate, out_norm
        inputs = hidden_size if input_size is None else input_size
        self.in_proj = nn.Linear(inputs, channels if gate == "none" else 2 * channels, bias=False)
        self.conv2d = depthwise(channels, conv_kernel, conv_bias) if conv_kernel > 1 else None
        self.act = ACT2FN[hidden_act]
        self.scans = (HeadwiseMapScan if headwise else MapScan)(channels, scan, state_size, rank, merge, eps)
        self.out_norm = nn.LayerNorm(channels, eps=eps) if out_norm.startswith("layer_norm") else None
        self.out_conv = depthwise(channels, 3, bias=False) if out_norm.endswith("conv") else None
        self.out_act = nn.GELU() if activate_output else nn.Identity()
        self.out_proj = nn.Linear(channels, hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, input_size]` -> `[B, h, w, hidden_size]`."""
        x, gate = self.in_proj(hidden_states), None
        if self.gate != "none":
            x, gate = x.chunk(2, dim=-1)
        x = self.act(x if self.conv2d is None else convolved(self.conv2d, x))
        scan = self._cascade if self.cascade else self.scans
        grid = tuple(x.shape[1:3])
        y = self.out_act(self._normed(scan(x.flatten(1, 2), grid).unflatten(1, grid)))
        if gate is not None:
            y = y * (self.act(gate) if self.gate == "activated" else gate)
        return self.dropout(self.out_proj(y))

    @force_accelerate_hooks(["scans"])  # offloaded weights are brought in by calls; the scan's are only read
    def _cascade(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Lines are sequences that follow one another: the state restarts where the number of the line changes."""
        paths = get_scan(self.scans.scan).paths(*grid, device=x.device)
        position = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
        rows, columns = position // grid[1], position % grid[1]
        for first, line, across in ((0, rows, 2), (1, columns, 1)):
            order = slice(first, None, 2)  # there and back
            x = nn.functional.layer_norm(x, x.shape[-1:], eps=self.eps)
            y = self.scans.along(x, paths[order], order, merge=False, seq_idx=line.expand(x.shape[0], -1))
            there, back = y.unflatten(2, grid).unbind(1)
            # the published models were trained so: what the way back gives stays mirrored within its line
            x = (there + back.flip(across)).flatten(1, 2)
        return x

    def _normed(self, y: torch.Tensor) -> torch.Tensor:
        if self.out_norm is not None:
            y = self.out_norm(y)
        if self.out_conv is not None:
            y = convolved(self.out_conv, y)
        if self.out_norm_type == "softmax":
            return y.flatten(1, 2).softmax(1).unflatten(1, y.shape[1:3])
        return y.sigmoid() if self.out_norm_type == "sigmoid" else y

    @torch.no_grad()
    def reset_parameters(self, initialization: str = "mamba", std: float = 0.02) -> None:
        """The published initialisation; `initialization` is `MapScan.reset_parameters`'."""
        for linear in (self.in_proj, self.out_proj):
            init.trunc_normal_(linear.weight, std=std)
        for conv in (self.conv2d, self.out_conv):
            if conv is not None:
                reset_convolution(conv)
        self.scans.reset_parameters(initialization, std)
