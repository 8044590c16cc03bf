# SPDX-License-Identifier: Apache-2.0
"""Square windows of a channel-last map as small maps of their own, and attention within them."""

import torch
import torch.nn.functional as F
from torch import nn

from vlmamba.layers.maps import Stage


def to_windows(x: torch.Tensor, side: int) -> torch.Tensor:
    """`[B, h, w, D]` -> `[B * n, side, side, D]`, the n windows of a map row by row.

    Sides that do not divide get rows of zeros at the bottom and columns at the right.
    """
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # [B, rows, side, columns, side, D]
    return x.transpose(2, 3).flatten(0, 2)


def from_windows(windows: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What `to_windows` undid: `[B * n, side, side, D]` -> `[B, h, w, D]`; what was padded is cut off."""
    side = windows.shape[1]
    height, width = grid
    rows, columns = -(-height // side), -(-width // side)
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


class WindowStage(Stage):
    """A `Stage` whose blocks all see windows of `side` x `side` positions instead of the map."""

    def __init__(self, downsample: nn.Module | None, blocks: list[nn.Module], side: int):
        super().__init__(downsample, blocks)
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        windows = to_windows(x, self.side)
        for block in self.blocks:
            windows = block(windows)
        return from_windows(windows, tuple(x.shape[1:3]))


class WindowAttention(nn.Module):
    """Multi-head self-attention among all positions of a map, without a position bias.

    Args:
        channels: D.
        num_heads: which share D.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_norm: LayerNorms of queries and keys.
        dropout, attention_dropout: of the output and of the attention weights.
        eps: of these norms.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.num_heads, self.attention_dropout = num_heads, attention_dropout
        width = channels // num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(width, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width, eps=eps) if qk_norm else nn.Identity()
        self.out_proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, D]` -> the same shape."""
        # [B, L, 3 D] -> three of [B, heads, L, D / heads]
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, dropout_p=dropout)
        return self.dropout(self.out_proj(y.transpose(1, 2).flatten(2))).unflatten(1, x.shape[1:3])
