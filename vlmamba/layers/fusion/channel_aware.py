# SPDX-License-Identifier: Apache-2.0
"""The block of Sigma's decoder: a mixer over positions, then attention over channels (arXiv:2404.04256)."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmamba.layers.fusion.squeeze import Squeeze
from vlmamba.layers.maps import LayerScale, convolved


class ChannelAttention(nn.Module):
    """Two convolutions of side 3, GELU between them, and a gate over channels that looks at means and maxima.

    Args:
        channels: D.
        compression: D over the width between the convolutions, which is at least 1.
        reduction: D over the width inside of the gate, which is at least 1.
    """

    def __init__(self, channels: int, compression: int = 3, reduction: int = 30):
        super().__init__()
        inner = max(channels // compression, 1)
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1)
        self.gate = Squeeze(channels, max(channels // reduction, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, D]` -> the same shape."""
        x = convolved(self.conv2, F.gelu(convolved(self.conv1, x)))
        logits = self.gate(x.mean((1, 2), keepdim=True)) + self.gate(x.amax((1, 2), keepdim=True))
        return x * logits.sigmoid()


class ChannelAwareBlock(GradientCheckpointingLayer):
    """u = x * scale + drop_path(mixer(norm(x))), then u * channel_scale + channel_attention(channel_norm(u)).

    Args:
        channels: D.
        mixer: of maps `[B, h, w, D]`.
        compression, reduction: of `ChannelAttention`.
        drop_path: rate of stochastic depth.
        eps: of the norms.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        compression: int = 3,
        reduction: int = 30,
        drop_path: float = 0.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.mixer = mixer
        self.scale = LayerScale(channels, 1.0)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.channel_norm = nn.LayerNorm(channels, eps=eps)
        self.channel_attention = ChannelAttention(channels, compression, reduction)
        self.channel_scale = LayerScale(channels, 1.0)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, D]` -> the same shape."""
        mixed = self.drop_path(self.mixer(self.norm(hidden_states)))
        hidden_states = self.scale(hidden_states) + mixed
        return self.channel_scale(hidden_states) + self.channel_attention(self.channel_norm(hidden_states))
