# SPDX-License-Identifier: Apache-2.0
"""A scan: in which orders a grid is read, as index tables without parameters."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np
import torch

KINDS = {
    "grid": "every order visits every row of a height x width grid once",
    "parts": "orders of a height x width grid that visit some of its rows; together they visit all",
    "repeats": "orders of a height x width grid that visit rows several times",
    "video": "every order visits every row of a frames x height x width grid once",
    "tokens": "every order visits every row of a height x width grid once, and extra tokens, whose rows follow",
    "modalities": "every order visits every row of several height x width grids once, the rows of one after another",
    "scales": "order k reads a grid of its own, coarser than a height x width grid by a factor of 2 ** k",
    "labels": "not rows, but a label for every step of another scan's orders",
}
END = -2


@dataclass(frozen=True)
class Scan:
    """Named orderings of a height x width grid whose position (r, c) is row r * width + c.

    Attributes:
        name: the registered name.
        num_paths: K, the number of directions.
        description: one line that says what is read in which order.
        build: `(height, width) -> [K, T]` array or tensor, the rows that each direction visits, in order; -1 is a
            padded step, -2 what follows the end of an order that is shorter than others.
        kind: what `paths` holds and which grid it takes: one of `KINDS`. In a video, position (t, r, c) of a
            frames x height x width grid is row (t * height + r) * width + c.
        grids: how many grids of this size follow each other in the rows.
        extra_tokens: how many rows follow those of the grid.
    """

    name: str
    num_paths: int
    description: str
    build: Callable[..., np.ndarray | torch.Tensor]
    kind: str = "grid"
    grids: int = 1
    extra_tokens: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"scan {self.name!r}: kind is {self.kind!r}, expected one of {', '.join(KINDS)}")

    def paths(self, *grid: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """int32 `[K, T]` table for `vlmamba.ops.selective_scan(..., paths=)` (cached: do not change it).

        Args:
            grid: height and width; for a video frames, height and width.
            device: of the table.

        Raises:
            ValueError: a side is below 1, or there are too few or too many.
        """
        grid = self._checked(grid)
        if torch.compiler.is_compiling():  # a tensor made before is foreign to the graph
            return torch.from_numpy(_table(self, grid)).to(device)
        return _placed(self, grid, torch.device(device))

    def num_rows(self, *grid: int) -> int:
        """L, the number of rows that the orders run over."""
        return self.grids * prod(self._checked(grid)) + self.extra_tokens

    def only(self, index: int) -> "Scan":
        """Order `index` alone, for layers that take turns: layer i reads `scan.only(i % scan.num_paths)`.

        Make it where the layer is made: a function under `torch.compile` finds it then, but cannot make it.

        Raises:
            ValueError: there is no such order.
        """
        if not 0 <= index < self.num_paths:
            raise ValueError(f"scan {self.name!r} has orders 0 to {self.num_paths - 1}, got {index}")
        key = (self, index)
        if key not in _parts:
            _parts[key] = replace(
                self,
                name=f"{self.name}[{index}]",
                num_paths=1,
                description=f"order {index} of {self.num_paths}: {self.description}",
                build=constant(lambda *grid: orders(self, *grid)[index][None]),
            )
        return _parts[key]

    def joined(self) -> "Scan":
        """All orders one after another as a single one: the state runs on from one into the next."""
        key = (self, "joined")
        if key not in _parts:
            _parts[key] = replace(
                self,
                name=f"joined({self.name})",
                num_paths=1,
                description=f"one after another: {self.description}",
                build=constant(lambda *grid: np.concatenate(orders(self, *grid))[None]),
                kind="repeats" if self.kind == "grid" else self.kind,
            )
        return _parts[key]

    def gather(self, x: torch.Tensor, *grid: int) -> torch.Tensor:
        """`[B, L, D]` rows -> `[B, K, T, D]`: what each direction reads, 0 at padded steps.

        Raises:
            ValueError: x has other than L rows, or the orders do not all read the same rows.
        """
        length = self._rows_to_merge(grid)
        if x.dim() != 3 or x.shape[1] != length:
            raise ValueError(f"scan {self.name!r}: x has shape {tuple(x.shape)}, expected (batch, {length}, channels)")
        paths = self.paths(*grid, device=x.device).long()
        return x[:, paths.clamp(min=0)] * (paths >= 0).unsqueeze(-1)

    def merge(self, y: torch.Tensor, *grid: int) -> torch.Tensor:
        """`[B, K, T, D]` steps -> `[B, L, D]`: every step's value summed into the row it visited.

        Raises:
            ValueError: y has other than K orders of T steps, or the orders do not all read the same rows.
        """
        length = self._rows_to_merge(grid)
        paths = self.paths(*grid, device=y.device).long()
        if y.dim() != 4 or y.shape[1:3] != paths.shape:
            expected = f"(batch, {paths.shape[0]}, {paths.shape[1]}, channels)"
            raise ValueError(f"scan {self.name!r}: y has shape {tuple(y.shape)}, expected {expected}")
        out = y.new_zeros(y.shape[0], length + 1, y.shape[-1])  # the last row takes padded steps
        out.index_add_(1, paths.flatten().remainder(length + 1), y.flatten(1, 2))
        return out[:, :length]

    def _checked(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        sides = 3 if self.kind == "video" else 2
        if len(grid) != sides:
            expected = "frames, height and width" if sides == 3 else "height and width"
            raise ValueError(f"scan {self.name!r}: the grid is {_size(grid)}, expected {expected}")
        if not torch.compiler.is_dynamo_compiling():  # there, sides stay free
            try:
                grid = tuple(map(operator.index, grid))
            except TypeError as error:
                raise ValueError(f"scan {self.name!r}: the grid is {_size(grid)}, expected whole numbers") from error
        if any(side < 1 for side in grid):
            raise ValueError(f"scan {self.name!r}: the grid is {_size(grid)}, expected at least {_size([1] * sides)}")
        return grid

    def _rows_to_merge(self, grid: tuple[int, ...]) -> int:
        if self.kind in ("labels", "scales"):
            raise ValueError(f"scan {self.name!r}: its orders do not read the same rows ({KINDS[self.kind]})")
        return self.num_rows(*grid)


def constant(build: Callable[..., np.ndarray]) -> Callable[..., np.ndarray | torch.Tensor]:
    """A `build` that `torch.compile` takes as one node, which becomes a constant, instead of tracing what it does."""

    @torch.compiler.allow_in_graph
    def table(*grid: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(build(*grid)))

    def built(*grid: int) -> np.ndarray | torch.Tensor:
        if torch.compiler.is_dynamo_compiling():
            return table(*[operator.index(side) for side in grid])
        return build(*grid)

    return built


def padded(ragged: list[np.ndarray]) -> np.ndarray:
    """Orders of several lengths as `[K, T]`, with -2 after the end of the shorter ones."""
    table = np.full((len(ragged), max(map(len, ragged))), END)
    for row, order in zip(table, ragged, strict=True):
        row[: len(order)] = order
    return table


def orders(scan: Scan, *grid: int) -> list[np.ndarray]:
    """Each order of a scan in its own length."""
    return [order[order != END] for order in _built(scan, grid)]


def combined(scans: tuple[Scan, ...], name: str) -> Scan:
    """All orders of several scans as one scan, padded to the longest.

    Raises:
        ValueError: they are for other kinds of grids.
    """
    kinds = {scan.kind for scan in scans}
    if kinds == {"grid", "parts"}:
        kinds = {"parts"}
    if len(kinds | {(scan.grids, scan.extra_tokens) for scan in scans}) != 2:
        kinds = ", ".join(f"{scan.name} ({scan.kind})" for scan in scans)
        raise ValueError(f"get_scan: scans of different rows cannot be combined: {kinds}")
    return replace(
        scans[0],
        name=name,
        num_paths=sum(scan.num_paths for scan in scans),
        description="; ".join(scan.description for scan in scans),
        build=constant(lambda *grid: padded([order for scan in scans for order in orders(scan, *grid)])),
        kind=kinds.pop(),
    )


_CAPACITY = 256
_parts: dict[tuple[Scan, int | str], Scan] = {}
_tensors: dict[tuple[Scan, tuple[int, ...], torch.device], torch.Tensor] = {}


def _size(grid: tuple[int, ...] | list[int]) -> str:
    return " x ".join(map(str, grid)) or "missing"


def _built(scan: Scan, grid: tuple[int, ...]) -> np.ndarray:
    # a tensor made in inference mode or while tracing would stay so for every later caller
    with torch.inference_mode(False):
        table = scan.build(*grid)
        return table.numpy() if isinstance(table, torch.Tensor) else table


@lru_cache(maxsize=_CAPACITY)
def _cached_table(scan: Scan, grid: tuple[int, ...]) -> np.ndarray:
    table = np.asarray(_built(scan, grid))
    if table.ndim != 2 or len(table) != scan.num_paths:
        raise ValueError(f"scan {scan.name!r}: build gave shape {table.shape}, expected ({scan.num_paths}, steps)")
    return np.maximum(table, -1).astype(np.int32)


def _table(scan: Scan, grid: tuple[int, ...]) -> np.ndarray:
    if torch.compiler.is_dynamo_compiling():
        return np.maximum(_built(scan, grid), -1).astype(np.int32)
    return _cached_table(scan, grid)


def _placed(scan: Scan, grid: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The same tensor for every call, so that the ops look into it once and nothing is sent to the device again."""
    key = (scan, grid, device)
    if key not in _tensors:
        with torch.inference_mode(False):
            table = torch.from_numpy(_table(scan, grid)).to(device)
        if type(table) is not torch.Tensor:  # of a mode that only pretends to compute
            return table
        if len(_tensors) >= _CAPACITY:
            _tensors.pop(next(iter(_tensors)))
        _tensors[key] = table
    return _tensors[key]
