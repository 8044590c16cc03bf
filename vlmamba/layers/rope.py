# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings of a grid: half of the channels turn with the row, half with the column (EVA-02)."""

import torch

from vlmamba.layers.embeddings import Grid, resize_map
from vlmamba.ops.numerics import widened

_CAPACITY = 64
_tables: dict[tuple, torch.Tensor] = {}


def rotary_table(
    grid: Grid,
    trained: Grid,
    channels: int,
    length: int = 14,
    theta: float = 10000.0,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Cosines and sines for `rotated`, float32 `[2, h * w, channels]` (cached: do not change them).

    Neighbouring channels share an angle: the row's (for the second half of the channels the column's) times
    theta^(-4i / channels), i = 0, 1, ...

    Args:
        grid: rows and columns of the tokens.
        trained: rows and columns of the grid whose sides are `length` long; for others its table is resized by
            bicubic interpolation, as LocalVim does.
        channels: D, a multiple of 4.
        length: what both sides of the trained grid count as.
        theta: base of the frequencies.
        device: of the table.
    """
    key = (tuple(grid), tuple(trained), channels, length, theta, torch.device(device))
    if torch.compiler.is_compiling():  # a tensor made before is foreign to the graph
        return _made(*key)
    if key not in _tables:
        # a tensor made in inference mode would stay so for every later caller
        with torch.inference_mode(False):
            table = _made(*key)
        if type(table) is not torch.Tensor:  # of a mode that only pretends to compute
            return table
        if len(_tables) >= _CAPACITY:
            _tables.pop(next(iter(_tables)))
        _tables[key] = table
    return _tables[key]


def rotated(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Every pair (a, b) of neighbouring channels turned: (a cos - b sin, b cos + a sin).

    Args:
        x: `[B, L, D]`.
        table: `[2, L, D]`, of `rotary_table`.

    Returns:
        x's shape and dtype.
    """
    cos, sin = table
    wide = widened(x)
    a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)
    return (wide * cos + torch.stack([-b, a], dim=-1).flatten(-2) * sin).to(x.dtype)


def _made(grid: Grid, trained: Grid, channels: int, length: int, theta: float, device: torch.device) -> torch.Tensor:
    half = channels // 2
    frequencies = 1.0 / theta ** (torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half)
    sides = []
    for side in trained:
        positions = torch.arange(side, dtype=torch.float32, device="cpu") / side * length
        sides.append(torch.outer(positions, frequencies).repeat_interleave(2, dim=-1))
    rows, columns = sides
    size = (*trained, half)
    angles = torch.cat([rows[:, None].expand(size), columns[None].expand(size)], dim=-1)
    table = torch.stack([angles.cos(), angles.sin()])
    if grid != trained:
        table = torch.cat([resize_map(part[None], grid) for part in table])
    return table.flatten(1, 2).to(device)
