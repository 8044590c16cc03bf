# SPDX-License-Identifier: Apache-2.0
"""PlainMamba's mixer: one set of parameters for all orders, of which B learns by which move a step was made."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from vlmamba.layers.maps import convolved, depthwise, reset_convolution
from vlmamba.ops import selective_scan
from vlmamba.ops.numerics import widened
from vlmamba.scans import get_scan
from vlmamba.scans.steps import moves_of, steps_of

Grid = tuple[int, int]

# start, right, left, up, down
_NUM_MOVES = 5


class PlainMixer(nn.Module):
    """in_proj -> depthwise convolution -> selective scan along K orders, summed -> gate -> out_proj.

    PlainMamba (arXiv:2403.17695), section 3.3. The projections of a row are computed once, for all orders.

    Args:
        hidden_size: width of the input and output.
        scan: name of the scan, or of several that are combined, whose orders visit every row once.
        state_size: N.
        conv_kernel: side of the depthwise convolution, odd.
        conv_bias: whether it has a bias.
        expand: inner width D over `hidden_size`.
        time_step_rank: R, rank of the time step projection; ceil(hidden_size / 16) when None.
        bias: whether in_proj and out_proj have one.
        move_embeddings: add a learned vector to B for the move by which an order comes to a row.
        permute_inputs: every order takes dt, B and C of the row that it visits, as the paper says. Otherwise step t
            visits the t-th row of its order with dt, B and C of row t of the grid, which is what the published code
            does.
        double_time_step_bias: add the bias of the time steps twice, as the published code does.
        layer_scale: initial value of a learned scale per output channel; none when None.
    """

    def __init__(
        self,
        hidden_size: int,
        scan: str | list[str] | tuple[str, ...] = "plainmamba4",
        state_size: int = 16,
        conv_kernel: int = 7,
        conv_bias: bool = True,
        expand: int | float = 2,
        time_step_rank: int | None = None,
        bias: bool = True,
        move_embeddings: bool = True,
        permute_inputs: bool = False,
        double_time_step_bias: bool = True,
        layer_scale: float | None = None,
    ):
        super().__init__()
        channels = int(expand * hidden_size)
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.scan, self.splits = scan, (rank, state_size, state_size)
        self.permute_inputs, self.double_time_step_bias = permute_inputs, double_time_step_bias
        self.in_proj = nn.Linear(hidden_size, 2 * channels, bias=bias)
        self.conv2d = depthwise(channels, conv_kernel, conv_bias)
        self.x_proj = nn.Linear(channels, sum(self.splits), bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.empty(channels, state_size, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(channels))
        self.move_embeddings = nn.Parameter(torch.empty(_NUM_MOVES, state_size)) if move_embeddings else None
        for needed, labels_of in ((not permute_inputs, steps_of), (move_embeddings, moves_of)):
            if needed:
                labels_of(get_scan(scan))  # made before `torch.compile` may ask for it
        self.out_proj = nn.Linear(channels, hidden_size, bias=bias)
        self.layer_scale_value = layer_scale
        if layer_scale is not None:
            self.layer_scale = nn.Parameter(torch.empty(hidden_size))

    def forward(self, hidden_states: torch.Tensor, grid: Grid) -> torch.Tensor:
        """`[B, L, hidden_size]`, the rows of a grid -> the same shape."""
        scan = get_scan(self.scan)
        paths = scan.paths(*grid, device=hidden_states.device)
        x, z = self.in_proj(hidden_states).chunk(2, dim=-1)
        x = F.silu(convolved(self.conv2d, x.unflatten(1, grid))).flatten(1, 2)
        dt, B, C = self.x_proj(x).split(self.splits, dim=-1)
        dt = self.dt_proj(dt)
        if not self.permute_inputs:
            # the table is over rows: what step t takes is given to the row that step t visits
            steps = steps_of(scan).paths(*grid, device=x.device)
            dt, B, C = (v.index_select(1, steps.flatten()).unflatten(1, steps.shape) for v in (dt, B, C))
        if self.move_embeddings is not None:
            moves = moves_of(scan).paths(*grid, device=x.device)
            B = (B if B.dim() == 4 else B.unsqueeze(1)) + F.embedding(moves, self.move_embeddings)
        A, skip = (v.expand(len(paths), *v.shape) for v in (-torch.exp(widened(self.A_log)), self.D))
        y = selective_scan(x, dt, A, B, C, skip, z, self._more_bias(dt, len(paths)), paths=paths)
        out = self.out_proj(y)
        return out if self.layer_scale_value is None else out * self.layer_scale

    def _more_bias(self, dt: torch.Tensor, num_paths: int) -> torch.Tensor | None:
        """The bias of the time steps `[K, D]`, which dt has already.

        The projection of nothing, so that what acts on the module (adapters, quantization, hooks) acts here too.
        """
        if not self.double_time_step_bias:
            return None
        return self.dt_proj(dt.new_zeros(1, self.splits[0])).expand(num_paths, -1)

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """The published initialisation, which has no special one for time steps: A = -(1..N), D = 1."""
        for linear in (self.in_proj, self.x_proj, self.dt_proj, self.out_proj):
            init.trunc_normal_(linear.weight, std=std)
            if linear.bias is not None:
                init.zeros_(linear.bias)
        reset_convolution(self.conv2d)
        channels, size = self.A_log.shape
        states = torch.arange(1, size + 1, dtype=torch.float32, device=self.A_log.device)
        init.copy_(self.A_log, torch.log(states).expand(channels, size))
        init.ones_(self.D)
        if self.move_embeddings is not None:
            init.trunc_normal_(self.move_embeddings, std=std)
        if self.layer_scale_value is not None:
            init.constant_(self.layer_scale, self.layer_scale_value)
