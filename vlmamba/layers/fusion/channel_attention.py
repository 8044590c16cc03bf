# SPDX-License-Identifier: Apache-2.0
"""Gates of channels by what their neighbours hold."""

import torch
from torch import nn
from transformers import initialization as init


class EfficientChannelAttention(nn.Module):
    """x * sigmoid(conv(mean over the map(x))), a convolution along the channels (ECA, arXiv:1910.03151).

    Args:
        kernel: channels that a gate reads, odd.
    """

    def __init__(self, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, D]` -> the same shape."""
        gate = self.conv(x.mean((1, 2)).unsqueeze(1)).sigmoid()
        return x * gate.unsqueeze(1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's initialisation."""
        init.kaiming_uniform_(self.conv.weight, a=5**0.5)
