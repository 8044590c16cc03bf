# SPDX-License-Identifier: Apache-2.0
"""FusionMamba's dynamic feature enhancement and fusion (Xie et al., arXiv:2404.09498). Maps are channel-last."""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from vlmamba.layers.fusion.channel_attention import EfficientChannelAttention
from vlmamba.layers.fusion.descriptive_convolution import LearnableDescriptiveConvolution
from vlmamba.layers.map_scan import MapScan
from vlmamba.layers.maps import convolved, depthwise, reset_convolution
from vlmamba.layers.merging import ChannelGate
from vlmamba.layers.ss2d import SS2D


class DynamicMixer(nn.Module):
    """Scans s of a map, and a descriptive convolution of s with attended channels, each through one channel gate.

    s = SS2D(x), gate(s) + gate(LDC(s + ECA(s))): the mixer of the dynamic visual state space (DVSS) block.

    Args:
        hidden_size: D.
        eps: of the norms.
        **options: of the `SS2D`.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5, **options: object):
        super().__init__()
        self.scan_branch = SS2D(hidden_size, eps=eps, **options)
        self.attention = EfficientChannelAttention()
        self.conv_branch = LearnableDescriptiveConvolution(hidden_size)
        self.gate = ChannelGate(hidden_size, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, D]` -> the same shape."""
        scanned = self.scan_branch(x)
        textures = self.conv_branch(scanned + self.attention(scanned))
        branches = torch.stack([scanned, textures])
        return self.gate(branches.flatten(2, 3)).sum(0).unflatten(1, x.shape[1:3])


def difference_gate(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """x + sigmoid(mean over the map(x - other)) * (x + other).

    The channels that `x` has more of than `other` take the more from both.

    Args:
        x, other: `[B, h, w, D]`.
    """
    return x + (x - other).mean((1, 2), keepdim=True).sigmoid() * (x + other)


class FeatureEnhancement(nn.Module):
    """Two maps, each with its texture and gated by its difference to the other: the DFEM.

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.texture = LearnableDescriptiveConvolution(hidden_size)
        self.texture_x = LearnableDescriptiveConvolution(hidden_size)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two of `[B, h, w, D]` -> two of the same shape."""
        return self.texture(a) + difference_gate(a, b), self.texture_x(b) + difference_gate(b, a)


class JointSS2D(nn.Module):
    """One map of two: x1 * x2 + x1 + x2 of their projections is scanned, and gated by both.

    Args:
        hidden_size: width of the inputs and the output.
        scan: name of the scan, or of several that are combined, of K orders with own parameters.
        own_gates: the second map is given a gate of its own, as the paper has it. The published models' second gate is
            the first's, activated twice.
        state_size, conv_kernel, expand, time_step_rank, hidden_act, eps: as of `SS2D`.
    """

    def __init__(
        self,
        hidden_size: int,
        scan: str | list[str] | tuple[str, ...] = "es2d_step2",
        own_gates: bool = False,
        state_size: int = 16,
        conv_kernel: int = 3,
        expand: float = 2.0,
        time_step_rank: int | None = None,
        hidden_act: str = "silu",
        eps: float = 1e-5,
    ):
        super().__init__()
        channels = int(expand * hidden_size)
        rank = math.ceil(hidden_size / 16) if time_step_rank is None else time_step_rank
        self.channels, self.own_gates = channels, own_gates
        self.in_proj = nn.Linear(hidden_size, 2 * channels, bias=False)
        self.in_proj_x = nn.Linear(hidden_size, 2 * channels if own_gates else channels, bias=False)
        self.conv2d = depthwise(channels, conv_kernel, bias=True) if conv_kernel > 1 else None
        self.act = ACT2FN[hidden_act]
        self.scans = MapScan(channels, scan, state_size, rank, eps=eps)
        self.out_norm = nn.LayerNorm(channels, eps=eps)
        self.out_proj = nn.Linear(channels, hidden_size, bias=False)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Two of `[B, h, w, hidden_size]` -> one of the same shape."""
        first, gate = self.in_proj(a).chunk(2, dim=-1)
        second = self.in_proj_x(b)
        gate = self.act(gate)
        if self.own_gates:
            second, gate_x = second.chunk(2, dim=-1)
        else:
            gate_x = gate
        first, second = self._mixed(first), self._mixed(second)
        grid = tuple(a.shape[1:3])
        y = self.scans((first * second + first + second).flatten(1, 2), grid)
        y = self.out_norm(y).unflatten(1, grid)
        return self.out_proj(y * gate + y * self.act(gate_x))

    def _mixed(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x if self.conv2d is None else convolved(self.conv2d, x))

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """As of `SS2D`."""
        for linear in (self.in_proj, self.in_proj_x, self.out_proj):
            init.trunc_normal_(linear.weight, std=std)
        if self.conv2d is not None:
            reset_convolution(self.conv2d)
        self.scans.reset_parameters(std=std)


class DynamicFusion(nn.Module):
    """Two maps to one: enhanced, normed and scanned together, added to both (the dynamic feature fusion module, DFFM).

    g = JointSS2D(norm(a'), norm(b')) of the enhanced maps a', b'; a + b + g + ECA(g).

    Args:
        hidden_size: D.
        eps: of the norms.
        **options: of the `JointSS2D`.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5, **options: object):
        super().__init__()
        self.enhancement = FeatureEnhancement(hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.norm_x = nn.LayerNorm(hidden_size, eps=eps)
        self.mixer = JointSS2D(hidden_size, eps=eps, **options)
        self.attention = EfficientChannelAttention()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Two of `[B, h, w, D]` -> one of the same shape."""
        enhanced, enhanced_x = self.enhancement(a, b)
        fused = self.mixer(self.norm(enhanced), self.norm_x(enhanced_x))
        return a + b + fused + self.attention(fused)
