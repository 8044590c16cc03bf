# SPDX-License-Identifier: Apache-2.0
"""The selective scans of one map in several orders, each with parameters of its own."""

import math

import torch
from torch import nn
from transformers import initialization as init

from vlmamba.layers.merging import make_merge, reset_merge
from vlmamba.ops import selective_scan
from vlmamba.ops.numerics import widened
from vlmamba.scans import get_scan

INITIALIZATIONS = ("mamba", "normal", "uniform")


class MapScan(nn.Module):
    """Rows `[B, L, D]` of a grid to rows: B, C and dt of every row, one scan for each order, merged.

    All orders read the same rows, so that the projections are computed once and nothing is permuted. Orders that share
    the rows among them (skips) are cut out and stitched together instead: each projects its own rows alone.

    Args:
        channels: D.
        scan: name of the scan, or of several that are combined, of K orders.
        state_size: N.
        time_step_rank: R, rank of the time step projections.
        merge: how the orders become one, of `vlmamba.layers.merging.MERGES`.
        eps: of the merge's norm.
    """

    def __init__(
        self,
        channels: int,
        scan: str | list[str] | tuple[str, ...],
        state_size: int,
        time_step_rank: int,
        merge: str = "sum",
        eps: float = 1e-5,
    ):
        super().__init__()
        self.scan, self.splits = scan, (time_step_rank, state_size, state_size)
        directions = get_scan(scan).num_paths
        # one product for all directions; their time steps, input and output matrices follow one another
        self.x_proj = nn.Linear(channels, directions * sum(self.splits), bias=False)
        self.dt_projs = nn.ModuleList(nn.Linear(time_step_rank, channels) for _ in range(directions))
        self.A_log = nn.Parameter(torch.empty(directions, channels, state_size, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(directions, channels))
        self.average = merge == "mean"
        self.stitched = merge == "sum" and _shares_rows(scan)
        self.merge = make_merge(merge, channels, directions, eps)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`[B, L, D]` -> `[B, L, D]`."""
        scan = get_scan(self.scan)
        if self.stitched:
            sequences = scan.gather(x, *grid)
            return scan.merge(selective_scan(sequences, *self.operands(sequences), merge=False), *grid)
        paths = scan.paths(*grid, device=x.device)
        y = self.along(x, paths, merge=self.merge is None)
        if self.merge is not None:
            return self.merge(y)
        return y / len(paths) if self.average else y

    def along(
        self, x: torch.Tensor, paths: torch.Tensor, order: slice = slice(None), **options: object
    ) -> torch.Tensor:
        """The selective scans of the directions `order` along their `paths`."""
        return self.scanned(x, self.operands(x, order), paths, order, **options)

    def scanned(
        self,
        x: torch.Tensor,
        operands: tuple[torch.Tensor, ...],
        paths: torch.Tensor,
        order: slice = slice(None),
        **options: object,
    ) -> torch.Tensor:
        """`along`, of `operands` that were made before."""
        dt, *operands = operands
        rows, grid = x.shape[1], get_scan(self.scan).kind == "grid"
        if paths.shape[1] > rows or (not grid and paths.numel() != rows):
            # there may be padded steps: rows of zeros, whose time steps are the projections' biases alone
            bias = self.time_step_biases(dt, order)
            dt, options["dt_bias"] = dt - bias.unsqueeze(1), bias + options.get("dt_bias", 0.0)
        return selective_scan(x, dt, *operands, paths=paths, **options)

    def time_step_biases(self, like: torch.Tensor, order: slice = slice(None)) -> torch.Tensor:
        """`[K, D]`, what the projections make of nothing: so adapters, quantization and hooks act here too."""
        nothing = like.new_zeros(1, self.splits[0])
        return torch.cat([project(nothing) for project in self.dt_projs[order]])

    def operands(self, x: torch.Tensor, order: slice = slice(None)) -> tuple[torch.Tensor, ...]:
        """dt, A, B, C and D of the directions `order` over rows `[B, L, D]`, or over each one's own, `[B, K, T, D]`."""
        projected = self.x_proj(x).unflatten(-1, (len(self.dt_projs), -1))
        if x.dim() == 3:
            projected = projected.transpose(1, 2)[:, order]
        else:
            projected = projected.diagonal(dim1=1, dim2=3).movedim(-1, 1)
        dt, B, C = projected.split(self.splits, dim=-1)
        dt = torch.stack([project(dt[:, k]) for k, project in enumerate(self.dt_projs[order])], dim=1)
        return dt, -torch.exp(widened(self.A_log[order])), B, C, self.D[order]

    @torch.no_grad()
    def reset_parameters(self, initialization: str = "mamba", std: float = 0.02) -> None:
        """The published initialisation, of time steps and state matrix one of `INITIALIZATIONS`.

        "mamba" is A = -(1..N) and softplus(dt bias) log-uniform in [1e-3, 1e-1]; "normal" and "uniform" are VMamba's
        simple ones.
        """
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
            reset_time_steps(project, initialization)
        reset_merge(self.merge, std)


def _shares_rows(scan: str | list[str] | tuple[str, ...]) -> bool:
    """Whether every row of a grid is visited by one of the orders, and once."""
    found = get_scan(scan)
    return found.kind == "parts" and int((found.paths(8, 8) >= 0).sum()) == 64


class HeadwiseMapScan(nn.Module):
    """Channels in as many heads as there are scans, each head in the orders of its own (GroupMamba, MHS-VM).

    The arguments are those of `MapScan`, but `scans` names one scan a head and the heads share the channels evenly.

    Raises:
        ValueError: the channels do not divide by the heads.
    """

    def __init__(self, channels: int, scans: list[str] | tuple[str, ...], *arguments: object, **options: object):
        super().__init__()
        if channels % len(scans):
            raise ValueError(f"scans has {len(scans)} heads, expected a divisor of the {channels} channels")
        self.heads = nn.ModuleList(MapScan(channels // len(scans), scan, *arguments, **options) for scan in scans)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`[B, L, D]` -> `[B, L, D]`."""
        parts = zip(self.heads, x.chunk(len(self.heads), dim=-1), strict=True)
        return torch.cat([head(part, grid) for head, part in parts], dim=-1)

    def reset_parameters(self, initialization: str = "mamba", std: float = 0.02) -> None:
        """As `MapScan.reset_parameters`, of every head."""
        for head in self.heads:
            head.reset_parameters(initialization, std)


def reset_time_steps(project: nn.Linear, initialization: str = "mamba") -> None:
    """The initialisation of a projection to time steps, of `INITIALIZATIONS`."""
    if initialization == "normal":
        init.normal_(project.weight, std=0.1)
        init.normal_(project.bias, std=0.1)
    elif initialization == "uniform":
        init.uniform_(project.weight, 0, 0.1)
        init.uniform_(project.bias, 0, 0.1)
    else:
        bound = project.in_features**-0.5
        init.uniform_(project.weight, -bound, bound)
        low, high = math.log(1e-3), math.log(1e-1)
        dt = torch.exp(torch.rand_like(project.bias, dtype=torch.float32) * (high - low) + low)
        init.copy_(project.bias, dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
