# SPDX-License-Identifier: Apache-2.0
"""A scan: in which orders a grid is read, as index tables without parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


@dataclass(frozen=True)
class Scan:
    """Named orderings of a height x width grid whose position (r, c) is row r * width + c.

    Attributes:
        name: the registered name.
        num_paths: K, the number of directions.
        description: one line that says what is read in which order.
        build: `(height, width) -> int64[K, T]`, the rows that each direction visits, in order; -1 pads.
    """

    name: str
    num_paths: int
    description: str
    build: Callable[[int, int], torch.Tensor]

    def paths(self, height: int, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """int32 `[K, T]` table for `vlmamba.ops.selective_scan(..., paths=)` (cached: do not change it).

        Raises:
            ValueError: height or width is below 1.
        """
        if height < 1 or width < 1:
            raise ValueError(f"scan {self.name!r}: the grid is {height} x {width}, expected at least 1 x 1")
        if torch.compiler.is_compiling():  # a tensor made before is foreign to the graph
            return torch.from_numpy(_table(self, height, width)).to(device)
        return _placed(self, height, width, torch.device(device))

    def gather(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """`[B, L, D]` rows -> `[B, K, T, D]`: what each direction reads, 0 at padded steps."""
        paths = self.paths(height, width, x.device).long()
        return x[:, paths.clamp(min=0)] * (paths >= 0).unsqueeze(-1)

    def merge(self, y: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """`[B, K, T, D]` steps -> `[B, L, D]`: every step's value summed into the row it visited."""
        paths = self.paths(height, width, y.device).long()
        length = height * width
        out = y.new_zeros(y.shape[0], length + 1, y.shape[-1])  # the last row takes padded steps
        out.index_add_(1, paths.flatten().remainder(length + 1), y.flatten(1, 2))
        return out[:, :length]


_CAPACITY = 256
_tensors: dict[tuple[Scan, int, int, torch.device], torch.Tensor] = {}


@lru_cache(maxsize=_CAPACITY)
def _table(scan: Scan, height: int, width: int) -> np.ndarray:
    # not a tensor: one made in inference mode or while tracing would stay so for every later caller
    with torch.inference_mode(False):
        return scan.build(height, width).to(torch.int32).numpy()


def _placed(scan: Scan, height: int, width: int, device: torch.device) -> torch.Tensor:
    """The same tensor for every call, so that the ops look into it once and nothing is sent to the device again."""
    key = (scan, height, width, device)
    if key not in _tensors:
        with torch.inference_mode(False):
            table = torch.from_numpy(_table(scan, height, width)).to(device)
        if type(table) is not torch.Tensor:  # of a mode that only pretends to compute
            return table
        if len(_tensors) >= _CAPACITY:
            _tensors.pop(next(iter(_tensors)))
        _tensors[key] = table
    return _tensors[key]
