# SPDX-License-Identifier: Apache-2.0
"""ReMamber's Mamba Twister: a map and a sentence, scanned across channels and over space (arXiv:2403.17839).

Maps are channel-last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmamba.layers.maps import convolved, reset_convolution
from vlmamba.layers.ss2d import SS2D


def _resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`[B, h, w, D]` in another size, bilinearly."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    x = F.interpolate(x.permute(0, 3, 1, 2), size=tuple(size), mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


class ImageTextCorrelation(nn.Module):
    """How much every position has of every token, as a map: the local condition.

    GELU(linear(map)) . GELU(linear(tokens)) is one channel for each token -> 3 x 3 convolution, GELU -> linear.

    Args:
        hidden_size: D, of the map and the output.
        text_size: width of the tokens.
        num_tokens: T; the convolution has a channel for each, so that all sentences are padded to it.
        correlation_size: width in which the two meet; `hidden_size` when None.
    """

    def __init__(self, hidden_size: int, text_size: int, num_tokens: int = 20, correlation_size: int | None = None):
        super().__init__()
        inner = hidden_size if correlation_size is None else correlation_size
        self.text_shape = (num_tokens, text_size)
        self.image_proj = nn.Linear(hidden_size, inner)
        self.text_proj = nn.Linear(text_size, inner)
        self.conv = nn.Conv2d(num_tokens, inner, 3, padding=1)
        self.out_proj = nn.Linear(inner, hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, text: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The correlations of a map with a sentence.

        Args:
            hidden_states: `[B, h, w, D]`.
            text: `[B, T, text_size]`.
            attention_mask: `[B, T]`; the map has nothing of tokens where it is 0. The published models go without: they
                correlate the padding too.

        Returns:
            `[B, h, w, D]`.

        Raises:
            ValueError: the text or its mask has another shape.
        """
        expected = (len(hidden_states), *self.text_shape)
        if text.shape != expected:
            raise ValueError(f"text has shape {tuple(text.shape)}, expected {expected}: batch, tokens, width")
        image, tokens = F.gelu(self.image_proj(hidden_states)), F.gelu(self.text_proj(text))
        correlation = (image.flatten(1, 2) @ tokens.mT).unflatten(1, hidden_states.shape[1:3])
        if attention_mask is not None:
            if attention_mask.shape != expected[:2]:
                raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected {expected[:2]}")
            correlation = correlation * attention_mask[:, None, None].to(correlation.dtype)
        return self.out_proj(F.gelu(convolved(self.conv, correlation)))

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """As of VMamba's layers: truncated normal for linear layers."""
        for linear in (self.image_proj, self.text_proj, self.out_proj):
            init.trunc_normal_(linear.weight, std=std)
            init.zeros_(linear.bias)
        reset_convolution(self.conv)


class ChannelScan(nn.Module):
    """Selective scans along the channels: each is a token, the features of which are the map's positions.

    The map is resized to `resolution` x `resolution` for it, so that maps of any size have as many features, and the
    result back. Both ways along the channels, twice each with own parameters, and a gate: an `SS2D` over 1 x D.

    Args:
        resolution: side r of the resized map.
        scan: name of the scan of the 1 x D tokens.
        **options: of the `SS2D`.
    """

    def __init__(self, resolution: int = 16, scan: str | list[str] | tuple[str, ...] = "cross_scan_bidi", **options):
        super().__init__()
        self.resolution = resolution
        self.mixer = SS2D(resolution**2, scan, **options)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, D]` -> the same shape, for any D."""
        size = (self.resolution, self.resolution)
        tokens = _resized(hidden_states, size).flatten(1, 2).mT.unsqueeze(1)  # [B, 1, D, r * r]
        mixed = self.mixer(tokens).squeeze(1).mT.unflatten(1, size)
        return _resized(mixed, hidden_states.shape[1:3])


class MambaTwister(nn.Module):
    """Three maps side by side, mixed across all their channels and then over space, to one.

    The cube X = [map, global condition, local condition] -> X + ChannelScan(X) -> SS2D that reads the 3D channels.

    Args:
        hidden_size: D, of each of the maps.
        resolution: side of the map whose positions are the features of the scan across channels.
        scan: name of the scan over space, or of several that are combined, with own parameters each.
        state_size: N of both.
        conv_bias: whether their convolutions have a bias.
        expand: inner width over `hidden_size` of the scan over space, over `resolution ** 2` of that across channels.
        eps: of their norms.
    """

    def __init__(
        self,
        hidden_size: int,
        resolution: int = 16,
        scan: str | list[str] | tuple[str, ...] = "cross_scan",
        state_size: int = 1,
        conv_bias: bool = False,
        expand: float = 2.0,
        eps: float = 1e-5,
    ):
        super().__init__()
        options = {"state_size": state_size, "conv_bias": conv_bias, "expand": expand, "eps": eps}
        self.channels = ChannelScan(resolution, **options)
        self.space = SS2D(hidden_size, scan, gate="none", input_size=3 * hidden_size, **options)

    def forward(
        self, hidden_states: torch.Tensor, global_condition: torch.Tensor, local_condition: torch.Tensor
    ) -> torch.Tensor:
        """Three of `[B, h, w, D]` -> one."""
        cube = torch.cat([hidden_states, global_condition, local_condition], dim=-1)
        return self.space(cube + self.channels(cube))

    @torch.no_grad()
    def reset_parameters(self, initialization: str = "mamba", std: float = 0.02) -> None:
        """As of VMamba's mixers."""
        self.channels.mixer.reset_parameters(initialization, std)
        self.space.reset_parameters(initialization, std)


class TwisterBlock(GradientCheckpointingLayer):
    """A twister on a residual stream; the conditions go on as c + norm(c), for the next block. One norm serves all.

    Args:
        hidden_size: D.
        drop_path: rate of stochastic depth.
        eps: of the norms.
        **options: of the `MambaTwister`.
    """

    def __init__(self, hidden_size: int, drop_path: float = 0.0, eps: float = 1e-5, **options: object):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.mixer = MambaTwister(hidden_size, eps=eps, **options)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(
        self, hidden_states: torch.Tensor, global_condition: torch.Tensor, local_condition: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three of `[B, h, w, D]` -> the three for the next block."""
        maps = (hidden_states, global_condition, local_condition)
        normed = tuple(self.norm(x) for x in maps)
        hidden_states = hidden_states + self.drop_path(self.mixer(*normed))
        return hidden_states, global_condition + normed[1], local_condition + normed[2]


class TwisterStage(nn.Module):
    """What a stage of an encoder does with a sentence: both conditions, made once, and blocks.

    The global condition is ReLU(linear(pooled text)) at every position, the local one the map's correlation with every
    token. In ReMamber it follows each of VMamba's stages, and the next stage reads what it gives.

    Args:
        hidden_size: D.
        text_size: width of the tokens.
        pooled_size: width of the pooled text; `text_size` when None.
        depth: number of blocks.
        num_tokens: T of every sentence.
        correlation_size: width in which map and tokens meet; `hidden_size` when None.
        **options: of the `TwisterBlock`s.
    """

    def __init__(
        self,
        hidden_size: int,
        text_size: int,
        pooled_size: int | None = None,
        depth: int = 2,
        num_tokens: int = 20,
        correlation_size: int | None = None,
        **options: object,
    ):
        super().__init__()
        self.global_proj = nn.Linear(text_size if pooled_size is None else pooled_size, hidden_size)
        self.correlation = ImageTextCorrelation(hidden_size, text_size, num_tokens, correlation_size)
        self.blocks = nn.ModuleList(TwisterBlock(hidden_size, **options) for _ in range(depth))

    def forward(
        self,
        hidden_states: torch.Tensor,
        text: torch.Tensor,
        pooled_text: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The map, told what the text says.

        Args:
            hidden_states: `[B, h, w, D]`.
            text, attention_mask: as of `ImageTextCorrelation`.
            pooled_text: `[B, pooled_size]`, one vector for the sentence.

        Returns:
            `[B, h, w, D]`.

        Raises:
            ValueError: a shape is wrong.
        """
        expected = (len(hidden_states), self.global_proj.in_features)
        if pooled_text.shape != expected:
            raise ValueError(f"pooled_text has shape {tuple(pooled_text.shape)}, expected {expected}: batch, width")
        local_condition = self.correlation(hidden_states, text, attention_mask)
        global_condition = F.relu(self.global_proj(pooled_text))[:, None, None].expand_as(hidden_states)
        for block in self.blocks:
            hidden_states, global_condition, local_condition = block(hidden_states, global_condition, local_condition)
        return hidden_states

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """As of VMamba's layers, for all parts."""
        init.trunc_normal_(self.global_proj.weight, std=std)
        init.zeros_(self.global_proj.bias)
        self.correlation.reset_parameters(std)
        for block in self.blocks:
            init.ones_(block.norm.weight)
            init.zeros_(block.norm.bias)
            block.mixer.reset_parameters("mamba", std)
