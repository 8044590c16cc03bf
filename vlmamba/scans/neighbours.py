# SPDX-License-Identifier: Apache-2.0
"""How well an order keeps together what lies together on the grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Locality:
    """Facts about one order.

    Attributes:
        jumps: how many steps go elsewhere than to a direct neighbour.
        largest_step: how far the longest step goes, in rows, columns or frames, whichever is more.
        mean_distance: how many steps lie on average between the visits of two direct neighbours.
        largest_distance: how many at most.
    """

    jumps: int
    largest_step: int
    mean_distance: float
    largest_distance: int


def locality(order: torch.Tensor | np.ndarray | Sequence[int], grid: Sequence[int]) -> Locality:
    """Count an order's jumps and how far apart it reads neighbours.

    Args:
        order: `[T]` rows in the order of their visits; -1 and rows beyond the grid (a class token) take a step and are
            no one's neighbours.
        grid: height and width, or any other number of sides.

    Raises:
        ValueError: order is not one-dimensional or visits a row twice.
    """
    order = torch.as_tensor(order).long().cpu().numpy()
    if order.ndim != 1:
        raise ValueError(f"locality: order has shape {order.shape}, expected (steps,)")
    steps = np.flatnonzero((order >= 0) & (order < np.prod(grid)))
    visited = order[steps]
    if len(np.unique(visited)) < len(visited):
        raise ValueError("locality: order visits a row twice, expected one visit at most")
    places = np.stack(np.unravel_index(visited, grid), axis=1)
    moves = abs(np.diff(places, axis=0))
    apart = _neighbour_distances(visited, steps, grid)
    return Locality(
        jumps=int((moves.sum(1) != 1).sum()),
        largest_step=int(moves.max(initial=0)),
        mean_distance=float(apart.mean()) if apart.size else 0.0,
        largest_distance=int(apart.max(initial=0)),
    )


def _neighbour_distances(visited: np.ndarray, steps: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """For every pair of direct neighbours that are both visited, the steps between their visits."""
    when = np.full(np.prod(grid), -1)
    when[visited] = steps
    when = when.reshape(grid)
    apart = []
    for axis in range(when.ndim):
        here, there = np.split(when, [-1], axis)[0], np.split(when, [1], axis)[1]
        apart.append(abs(here - there)[(here >= 0) & (there >= 0)])
    return np.concatenate(apart)
