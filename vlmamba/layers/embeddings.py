# SPDX-License-Identifier: Apache-2.0
"""Images to tokens: patches in raster order, extra tokens put among them, learned positions added."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

Grid = tuple[int, int]


class TokenEmbeddings(nn.Module):
    """A convolution of patches, tokens that are no patches (class token, registers), and position embeddings.

    Images whose sides are no whole number of patches get zeros at the bottom and right, or lose what is left there.

    Args:
        num_channels: image channels.
        hidden_size: D, width of the tokens.
        patch_size, stride: side of a patch and step between patches, in pixels.
        grid: rows and columns for which there are position embeddings.
        num_extra: E, number of extra tokens.
        positions: whether there are position embeddings, one for every token of the sequence.
        dropout: of the tokens, at the end.
        interpolation: how position embeddings are resized, "bicubic" or "bilinear".
        pad: whether images get zeros.
    """

    def __init__(
        self,
        num_channels: int,
        hidden_size: int,
        patch_size: int,
        stride: int,
        grid: Grid,
        num_extra: int = 0,
        positions: bool = True,
        dropout: float = 0.0,
        interpolation: str = "bicubic",
        pad: bool = True,
    ):
        super().__init__()
        self.pad = pad
        self.patch_size, self.stride, self.grid, self.interpolation = patch_size, stride, grid, interpolation
        self.patch_embeddings = nn.Conv2d(num_channels, hidden_size, patch_size, stride=stride)
        self.class_tokens = nn.Parameter(torch.empty(1, num_extra, hidden_size)) if num_extra else None
        self.position_embeddings = None
        if positions:
            self.position_embeddings = nn.Parameter(torch.empty(1, math.prod(grid) + num_extra, hidden_size))
        self.dropout = nn.Dropout(dropout)

    def extra_positions(self, num_patches: int) -> list[int]:
        """Where the extra tokens stand in the sequence, ascending."""
        return []

    def project(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` -> patches `[B, D, h, w]`."""
        bottom, right = ((self.patch_size - side) % self.stride * self.pad for side in pixel_values.shape[2:])
        x = F.pad(pixel_values, (0, right, 0, bottom)) if right or bottom else pixel_values
        return self.patch_embeddings(x.to(self.patch_embeddings.weight.dtype))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """`[B, C, H, W]` -> tokens `[B, L, D]` and the grid (rows, columns) of the patches among them."""
        patches = self.project(pixel_values)
        grid = tuple(patches.shape[2:])
        tokens = patches.flatten(2).transpose(1, 2)
        if self.class_tokens is not None:
            tokens = self.insert(tokens, self.class_tokens.expand(tokens.shape[0], -1, -1))
        if self.position_embeddings is not None:
            tokens = tokens + self.positions(grid)
        return self.dropout(tokens), grid

    def insert(self, patches: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        """`[B, h * w, D]` and `[B, E, D]` -> `[B, h * w + E, D]`: every extra token at its position."""
        pieces, start = [], 0
        for e, position in enumerate(self.extra_positions(patches.shape[1])):
            pieces += [patches[:, start : position - e], extra[:, e : e + 1]]
            start = position - e
        return torch.cat([*pieces, patches[:, start:]], dim=1)

    def positions(self, grid: Grid) -> torch.Tensor:
        """Position embeddings `[1, L, D]`, resized by interpolation when the grid is another than trained."""
        table = self.position_embeddings
        if tuple(grid) == tuple(self.grid):
            return table
        at = self.extra_positions(math.prod(self.grid))
        patches = table[:, [i for i in range(table.shape[1]) if i not in at]] if at else table
        resized = resize_map(patches.unflatten(1, self.grid), grid, self.interpolation).flatten(1, 2)
        return self.insert(resized, table[:, at]) if at else resized

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """LeCun normal for the patches' convolution, truncated normal of `std` for the tables."""
        for table in (self.class_tokens, self.position_embeddings):
            if table is not None:
                init.trunc_normal_(table, std=std)
        if isinstance(self.patch_embeddings, nn.Conv2d):
            init.trunc_normal_(self.patch_embeddings.weight, std=self.patch_embeddings.weight[0].numel() ** -0.5)
            init.zeros_(self.patch_embeddings.bias)


def resize_map(table: torch.Tensor, grid: Grid, mode: str = "bicubic") -> torch.Tensor:
    """A channel-last map `[1, h, w, D]` in another size, by interpolation in float32."""
    resized = F.interpolate(table.permute(0, 3, 1, 2).float(), size=tuple(grid), mode=mode, align_corners=False)
    return resized.permute(0, 2, 3, 1).to(table.dtype)
