# SPDX-License-Identifier: Apache-2.0
"""MobileNet's convolutional mixer (arXiv:1801.04381) with squeeze and excitation. Maps are channel-last."""

import torch
import torch.nn.functional as F
from torch import nn

from vlmamba.layers.maps import MapBatchNorm, SqueezeExcite, convolved, depthwise, reset_convolution


class InvertedResidual(nn.Module):
    """Widen, convolve each channel, squeeze and excite, narrow; a batch norm after every convolution.

    Convolutions of side 1 are linear layers. The input is added by the block around it.

    Args:
        channels: of the input and output.
        expand: inner width over that.
        reduction: width of the squeeze over the inner width.
        eps: of the norms.
    """

    def __init__(self, channels: int, expand: int = 4, reduction: float = 0.125, eps: float = 1e-5):
        super().__init__()
        inner = expand * channels
        self.widen = nn.Linear(channels, inner, bias=False)
        self.widen_norm = MapBatchNorm(inner, eps=eps)
        self.conv = depthwise(inner, 3, bias=False)
        self.conv_norm = MapBatchNorm(inner, eps=eps)
        self.squeeze = SqueezeExcite(inner, int(inner * reduction))
        self.narrow = nn.Linear(inner, channels, bias=False)
        self.narrow_norm = MapBatchNorm(channels, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, channels]` -> the same shape."""
        x = F.relu(self.widen_norm(self.widen(x)))
        x = F.relu(self.conv_norm(convolved(self.conv, x)))
        return self.narrow_norm(self.narrow(self.squeeze(x)))

    def reset_parameters(self) -> None:
        """PyTorch's initialisation of convolutions."""
        for layer in (self.widen, self.conv, self.squeeze.reduce, self.squeeze.expand, self.narrow):
            reset_convolution(layer)
