# SPDX-License-Identifier: Apache-2.0
"""A gate over the bands of an image, scanned one after the other (pansharpening FusionMamba, arXiv:2404.07932)."""

import torch
from torch import nn

from vlmamba.layers.fusion.dual_input import SteeredMixer, reset_linear
from vlmamba.scans import get_scan


class SpectralAttention(nn.Module):
    """The largest value of each band -> linear -> norm -> mixer along the bands and back -> linear -> sigmoid.

    Args:
        hidden_size: width of a band's token.
        eps: of the norms.
        **sizes: state_size, conv_kernel, expand and time_step_rank of the `SteeredMixer`.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5, **sizes: int | None):
        super().__init__()
        self.in_proj = nn.Linear(1, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.mixer = SteeredMixer(hidden_size, num_paths=2, eps=eps, **sizes)
        self.out_proj = nn.Linear(hidden_size, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`[B, C, h, w]` -> a factor for each band, `[B, C, 1, 1]`, in (0, 1)."""
        bands = image.amax((2, 3)).unsqueeze(-1)
        paths = get_scan("bidirectional").paths(1, bands.shape[1], device=image.device)
        tokens = self.mixer(self.norm(self.in_proj(bands)), paths)
        return self.out_proj(tokens).sigmoid().unsqueeze(-1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's of the linear layers, the mixer's own of the rest."""
        reset_linear(self.in_proj)
        reset_linear(self.out_proj)
        self.mixer.reset_parameters()
