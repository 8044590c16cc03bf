# SPDX-License-Identifier: Apache-2.0
"""The block of encoders over tokens: a mixer on a residual stream."""

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmamba.ops.numerics import widened


class MixerBlock(GradientCheckpointingLayer):
    """x + drop_path(mixer(norm(x), ...)).

    Args:
        norm: of tokens.
        mixer: takes the normed tokens and what else the block is given.
        drop_path: rate of stochastic depth.
        residual_in_fp32: keep the sum in float32.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float = 0.0, residual_in_fp32: bool = False):
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.norm, self.mixer = norm, mixer
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, hidden_states: torch.Tensor, *arguments: object) -> torch.Tensor:
        residual = widened(hidden_states) if self.residual_in_fp32 else hidden_states
        normed = self.norm(hidden_states.to(self.norm.weight.dtype))
        return residual + self.drop_path(self.mixer(normed, *arguments))
