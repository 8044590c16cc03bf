# SPDX-License-Identifier: Apache-2.0
"""Two maps that steer each other's scans, and become one: the block of the pansharpening FusionMamba.

arXiv:2404.07932; it has nothing but its name in common with `dynamic_features`' FusionMamba.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmamba.layers.vision_mixer import ScanDirection
from vlmamba.ops import causal_conv1d, selective_scan
from vlmamba.scans import get_scan

# rows, columns, and both reversed
SCAN = "cross_scan"


class SteeredMixer(nn.Module):
    """in_proj -> causal convolution -> selective scan along K orders -> gate -> mean of them -> norm -> out_proj.

    What is scanned, and gated, is one sequence. dt, B and C are of the same sequence, or of a second one that then
    steers the scans: of its projection, which is neither convolved nor activated.

    Args:
        hidden_size: width of the inputs and of the output.
        num_paths: K; every order has its own parameters.
        steered: whether there is a second sequence.
        state_size: N.
        conv_kernel: taps of the convolution, which runs along each order.
        expand: inner width over `hidden_size`.
        time_step_rank: rank of the time step projections; ceil(hidden_size / 16) when None.
        eps: of the norm.
    """

    def __init__(
        self,
        hidden_size: int,
        num_paths: int,
        steered: bool = False,
        state_size: int = 8,
        conv_kernel: int = 4,
        expand: int = 1,
        time_step_rank: int | None = None,
        eps: float = 1e-5,
    ):
        super().__init__()
        channels = expand * hidden_size
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.in_proj = nn.Linear(hidden_size, 2 * channels, bias=False)
        self.in_proj_x = nn.Linear(hidden_size, channels, bias=False) if steered else None
        self.directions = nn.ModuleList(
            ScanDirection(channels, state_size, conv_kernel, rank) for _ in range(num_paths)
        )
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.out_proj = nn.Linear(channels, hidden_size, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, paths: torch.Tensor, other: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mix rows.

        Args:
            hidden_states: `[B, L, hidden_size]`.
            paths: int `[K, L]`, the scan orders.
            other: what steers the scans, of the same shape; None where the mixer is not steered.

        Returns:
            `[B, L, hidden_size]`.

        Raises:
            ValueError: there is another sequence and should be none, or the reverse, or its shape differs.
        """
        _check_other(hidden_states, other, self.in_proj_x is not None)
        x, z = self.in_proj(hidden_states).chunk(2, dim=-1)
        A_log, skip, weight, bias = (torch.stack(parts) for parts in zip(*(d() for d in self.directions), strict=True))
        x = causal_conv1d(x, weight.squeeze(2), bias, activation="silu", paths=paths)  # [B, K, L, D]
        steering = x.unbind(1) if other is None else [self.in_proj_x(other)] * len(self.directions)
        inputs = [direction.project(rows) for direction, rows in zip(self.directions, steering, strict=True)]
        dt, B, C = (torch.stack(parts, dim=1) for parts in zip(*inputs, strict=True))
        y = selective_scan(x, dt, -torch.exp(A_log), B, C, skip, z, paths=paths)
        return self.out_proj(self.norm(y / len(self.directions)))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's of the linear layers, Mamba's of the scans."""
        for linear in (self.in_proj, self.in_proj_x, self.out_proj):
            if linear is not None:
                init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        for direction in self.directions:
            direction.reset_parameters()


class _Residual(nn.Module):
    """x + mixer(norm(x)), or, steered, x + mixer(norm(x), norm_x(other))."""

    def __init__(self, hidden_size: int, steered: bool, eps: float, **sizes: int | None):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.norm_x = nn.LayerNorm(hidden_size, eps=eps) if steered else None
        self.mixer = SteeredMixer(hidden_size, len(get_scan(SCAN).paths(1, 1)), steered, eps=eps, **sizes)

    def forward(self, x: torch.Tensor, paths: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        return x + self.mixer(self.norm(x), paths, None if other is None else self.norm_x(other))


class DualInputFusion(GradientCheckpointingLayer):
    """Both maps through mixers of their own, then each steered by the other; the mean of these, projected, is f.

    Args:
        hidden_size: width of both maps, and of what is given.
        depth: mixers of either map before they meet.
        final: give f alone; otherwise the mean of each map, as it was before they met, with f.
        eps: of the norms.
        **sizes: state_size, conv_kernel, expand and time_step_rank of the `SteeredMixer`s.
    """

    def __init__(self, hidden_size: int, depth: int = 1, final: bool = False, eps: float = 1e-5, **sizes: int | None):
        super().__init__()
        self.final = final
        self.layers = nn.ModuleList(_Residual(hidden_size, False, eps, **sizes) for _ in range(depth))
        self.layers_x = nn.ModuleList(_Residual(hidden_size, False, eps, **sizes) for _ in range(depth))
        self.cross = _Residual(hidden_size, True, eps, **sizes)
        self.cross_x = _Residual(hidden_size, True, eps, **sizes)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Two maps `[B, h, w, hidden_size]` -> two of the same shape; one where the block is `final`.

        Raises:
            ValueError: their shapes differ.
        """
        if first.shape != second.shape:
            raise ValueError(
                f"first has shape {tuple(first.shape)} and second {tuple(second.shape)}, expected the same"
            )
        grid = tuple(first.shape[1:3])
        paths = get_scan(SCAN).paths(*grid, device=first.device)
        first, second = first.flatten(1, 2), second.flatten(1, 2)
        for layer, layer_x in zip(self.layers, self.layers_x, strict=True):
            first, second = layer(first, paths), layer_x(second, paths)
        crossed = self.cross(first, paths, second) + self.cross_x(second, paths, first)
        fused = self.out_proj(crossed / 2).unflatten(1, grid)
        if self.final:
            return fused
        return tuple((rows.unflatten(1, grid) + fused) / 2 for rows in (first, second))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's of the projection, the mixers' own of the rest."""
        reset_linear(self.out_proj)
        for layer in (*self.layers, *self.layers_x, self.cross, self.cross_x):
            layer.mixer.reset_parameters()


@torch.no_grad()
def reset_linear(linear: nn.Linear) -> None:
    """PyTorch's initialisation of a linear layer."""
    init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
    bound = linear.in_features**-0.5
    init.uniform_(linear.bias, -bound, bound)


def _check_other(hidden_states: torch.Tensor, other: torch.Tensor | None, steered: bool) -> None:
    shape = tuple(hidden_states.shape)
    if (other is not None) != steered or (steered and tuple(other.shape) != shape):
        came = None if other is None else tuple(other.shape)
        raise ValueError(f"other has shape {came}, expected {shape if steered else None}")
