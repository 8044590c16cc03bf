# SPDX-License-Identifier: Apache-2.0
"""Shallow fusion of two modalities: they exchange channels, then each is mixed for itself (arXiv:2404.08406)."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def exchange_channels(a: torch.Tensor, b: torch.Tensor, every: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Swap channels 0, `every`, 2 * `every`, ... between two tensors `[..., D]`.

    Raises:
        ValueError: the shapes differ, or `every` is not positive.

    Example:
        >>> a, b = exchange_channels(torch.zeros(1, 4), torch.ones(1, 4))
        >>> a
        tensor([[1., 0., 1., 0.]])
    """
    if a.shape != b.shape:
        raise ValueError(f"exchange_channels: a has shape {tuple(a.shape)} and b {tuple(b.shape)}, expected the same")
    if every < 1:
        raise ValueError(f"exchange_channels: every is {every}, expected 1 or more")
    swapped = torch.arange(a.shape[-1], device=a.device) % every == 0
    return torch.where(swapped, b, a), torch.where(swapped, a, b)


class ChannelExchange(GradientCheckpointingLayer):
    """Two residual streams, each normed; every second channel exchanged; one mixer for each.

    Args:
        norm, norm_x: of the tokens of the one and of the other modality.
        mixer, mixer_x: their mixers; each takes tokens and what else `forward` is given.
        every: of so many channels, one is exchanged.
    """

    def __init__(self, norm: nn.Module, norm_x: nn.Module, mixer: nn.Module, mixer_x: nn.Module, every: int = 2):
        super().__init__()
        self.norm, self.norm_x = norm, norm_x
        self.mixer, self.mixer_x = mixer, mixer_x
        self.every = every

    def forward(
        self, hidden_states: torch.Tensor, hidden_states_x: torch.Tensor, *arguments: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is to be added to either stream.

        Args:
            hidden_states, hidden_states_x: `[B, L, D]`, the streams.
            arguments: for the mixers, such as `paths`.

        Returns:
            Two `[B, L, D]`, without the streams themselves: a last block may go on from them alone.
        """
        exchanged, exchanged_x = exchange_channels(
            self.norm(hidden_states), self.norm_x(hidden_states_x), every=self.every
        )
        return self.mixer(exchanged, *arguments), self.mixer_x(exchanged_x, *arguments)
