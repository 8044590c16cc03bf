# SPDX-License-Identifier: Apache-2.0
"""Convolutions that learn how much of a plain and how much of a difference operator they are."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.integrations.accelerate import force_accelerate_hooks

from vlmamba.layers.maps import reset_convolution


class LearnableDescriptiveConvolution(nn.Module):
    """A 3 x 3 convolution of channel-last maps with the kernel w * (base - theta * m * sum(w) at the centre).

    Every pair of an output and an input channel has a factor m of its own for what its kernel's centre loses: textures
    are described by differences to the centre, and how strongly is learned (FusionMamba, arXiv:2404.09498).

    Args:
        channels: D.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # of ones, and not trained; published weights bring it along
        self.base_mask = nn.Parameter(torch.empty(channels, channels, 3, 3), requires_grad=False)
        self.learnable_mask = nn.Parameter(torch.empty(channels, channels))
        self.learnable_theta = nn.Parameter(torch.empty(1))

    def kernel(self) -> torch.Tensor:
        """`[D, D, 3, 3]`, what the map is convolved with."""
        weight = self.conv.weight
        lost = self.learnable_theta * self.learnable_mask * weight.sum((2, 3))
        return weight * (self.base_mask - F.pad(lost[..., None, None], (1, 1, 1, 1)))

    @force_accelerate_hooks(["conv"])  # offloaded weights are brought in by calls; the convolution's are only read
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, D]` -> the same shape."""
        return F.conv2d(x.permute(0, 3, 1, 2), self.kernel(), padding=1).permute(0, 2, 3, 1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's initialisation of the kernel; half of a difference operator."""
        reset_convolution(self.conv)
        init.ones_(self.base_mask)
        init.ones_(self.learnable_mask)
        init.constant_(self.learnable_theta, 0.5)
