# SPDX-License-Identifier: Apache-2.0
"""Pictures of orders: where each row lies, and the line that an order draws through them."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmamba.scans.base import Scan, orders

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "viridis"
GAP = 1.0
LEAN = 0.5  # or the ways from frame to frame would lie on each other
LONGEST_ROW = 4
MOST_CELLS = 64 * 64


def places(scan: Scan, grid: tuple[int, ...], index: int = 0, lean: float = 0.0) -> np.ndarray:
    """Where the rows that order `index` reads lie: float `[L, 2]`, x to the right and y down.

    Frames and modalities lie side by side, extra tokens below the grid.

    Args:
        scan: of any kind but labels.
        grid: its sides.
        index: of the order; only scales differ.
        lean: how much lower each frame lies than the one before it.
    """
    frames = grid[0] if scan.kind == "video" else scan.grids
    height, width = grid[-2:]
    if scan.kind == "scales":
        height, width = -(-height // 2**index), -(-width // 2**index)
    t, r, c = np.unravel_index(np.arange(frames * height * width), (frames, height, width))
    cells = np.stack([c + t * (width + GAP), r + t * lean], axis=1)
    beside = np.arange(scan.extra_tokens)
    tokens = np.stack([beside % width, height + GAP / 2 + beside // width], axis=1)
    return np.concatenate([cells, tokens])


def draw(scan: Scan, *grid: int) -> "Figure":
    """A figure with a panel for each order: a line from dark to light, a dot where it starts, jumps dashed.

    Args:
        scan: of any kind.
        grid: height and width; for a video frames, height and width.

    Raises:
        ValueError: the scan has no such grid.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scan.paths(*grid)  # says what is wrong with the grid
    paths = orders(scan, *grid)
    columns = min(len(paths), LONGEST_ROW)
    lines = -(-len(paths) // columns)
    wide, high = _panel_inches(scan, grid)
    title = f"{scan.name}  {' x '.join(map(str, grid))}"
    size = max(columns * wide, 0.08 * len(title) + 0.3), lines * (high + 0.25) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for index, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index < len(paths):
            panel = _labels if scan.kind == "labels" else _order
            panel(axes, scan, grid, index, paths[index])
    return figure


def save(scan: Scan, grid: tuple[int, ...], path: Path | str, dpi: int = 100) -> None:
    """Draw a scan into a file, whose format is that of its ending.

    Raises:
        ValueError: the scan has no such grid, or the format is unknown.
        OSError: the file cannot be written.
    """
    draw(scan, *grid).savefig(path, dpi=dpi)


def _panel_inches(scan: Scan, grid: tuple[int, ...]) -> tuple[float, float]:
    """Width and height of a panel: 0.22 inch a cell while that is neither tiny nor huge."""
    span = np.ptp(places(scan, grid, lean=LEAN), axis=0) + 1
    cell = np.clip(0.22, 1.6 / max(span), 8 / max(span))
    wide, high = np.maximum(span * cell, 0.4)
    return max(float(wide) + 0.2, 1.7), float(high)


def _order(axes: "Axes", scan: Scan, grid: tuple[int, ...], index: int, order: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    where = places(scan, grid, index, LEAN)
    visited = order[order >= 0]
    _cells(axes, where)
    axes.set_title(_caption(index, order), fontsize=7, pad=2)
    if not len(visited):
        return
    line = where[visited]
    segments = np.stack([line[:-1], line[1:]], axis=1)
    shade = np.linspace(0, 1, max(len(segments), 1))[: len(segments)]
    moves = abs(np.diff(line, axis=0)).max(axis=1)
    # on a sub-grid, every step is a long one
    jumps = moves > (moves.min(initial=np.inf) if scan.kind == "parts" else 1)
    steps = {"cmap": COLOURS, "clim": (0, 1.1), "capstyle": "round"}
    for chosen, width, dashes, alpha in ((jumps, 0.5, (0, (3, 2)), 0.7), (~jumps, 1.8, "solid", 1.0)):
        lines = LineCollection(segments[chosen], linewidths=width, linestyles=[dashes], alpha=alpha, **steps)
        lines.set_array(shade[chosen])
        axes.add_collection(lines)
    axes.plot(*line[0], "o", color="crimson", markersize=4)


def _cells(axes: "Axes", where: np.ndarray) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    if len(where) <= MOST_CELLS:
        squares = [Rectangle((x - 0.5, y - 0.5), 1, 1) for x, y in where]
        axes.add_collection(PatchCollection(squares, facecolor="none", edgecolor="0.85", linewidth=0.5))
    (left, top), (right, bottom) = where.min(axis=0) - 0.6, where.max(axis=0) + 0.6
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")


def _caption(index: int, order: np.ndarray) -> str:
    skipped = int((order < 0).sum())
    return f"{index}: {skipped} padded steps" if skipped else str(index)


def _labels(axes: "Axes", scan: Scan, grid: tuple[int, ...], index: int, labels: np.ndarray) -> None:
    """The label of every step, the steps in lines as wide as the grid."""
    axes.set_title(f"{index}, step by step", fontsize=7, pad=2)
    axes.imshow(labels.reshape(grid), cmap=COLOURS, vmin=0, vmax=max(labels.max(), 1), alpha=0.5)
    for step, label in enumerate(labels[:MOST_CELLS]):
        axes.text(step % grid[1], step // grid[1], str(label), ha="center", va="center", fontsize=6)
