# SPDX-License-Identifier: Apache-2.0
"""What the gates over channels have in common."""

import torch
import torch.nn.functional as F
from torch import nn


class Squeeze(nn.Module):
    """W2 silu(W1 x), of fewer channels in between and without biases: the logits of a gate over channels.

    Args:
        channels: D.
        inner: width between the two layers.
    """

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.reduce = nn.Linear(channels, inner, bias=False)
        self.expand = nn.Linear(inner, channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., D]` -> the same shape."""
        return self.expand(F.silu(self.reduce(x)))
