# SPDX-License-Identifier: Apache-2.0
"""Varied backgrounds for the scenes: plain colours, gradients and simple patterns."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image


def background(rng: Random, size: int) -> np.ndarray:
    """(size, size, 3) bytes: plain, or one of seven patterns of two colours."""
    first = _colour(rng)
    if rng.random() < 0.45:
        return np.full((size, size, 3), first, np.uint8)
    near = [min(255, max(0, value + rng.randint(-60, 60))) for value in first]
    second = _colour(rng) if rng.random() < 0.3 else near
    pattern = rng.choice((_gradient, _gradient, _stripes, _checkers, _dots, _noise, _blobs, _horizon))
    # (size, size) between 0 and 1: how much of the second colour each pixel has
    mix = pattern(rng, size, *np.ogrid[:size, :size])[..., None].astype(np.float32)
    low, high = np.array(first, np.float32), np.array(second, np.float32)
    return (low + (high - low) * mix).astype(np.uint8)


def _colour(rng: Random) -> tuple[int, int, int]:
    kind = rng.random()
    if kind < 0.3:
        return (255, 255, 255)
    if kind < 0.4:
        return (0, 0, 0)
    if kind < 0.5:
        return (rng.randint(40, 230),) * 3
    low = rng.choice((0, 120, 180))
    return (rng.randint(low, 255), rng.randint(low, 255), rng.randint(low, 255))


def _gradient(rng: Random, size: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    a, b = rng.choice(((1, 0), (0, 1), (0.5, 0.5)))
    mix = (a * x + b * y) / size
    return mix if rng.random() < 0.5 else 1 - mix


def _stripes(rng: Random, size: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    a, b = rng.choice(((1, 0), (0, 1), (1, 1), (1, -1)))
    return (a * x + b * y + 0 * (x + y)) // rng.randint(5, 24) % 2


def _checkers(rng: Random, size: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    side = rng.randint(6, 32)
    return (x // side + y // side) % 2


def _dots(rng: Random, size: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    step = rng.randint(10, 30)
    radius = step * rng.uniform(0.15, 0.35)
    return ((x % step - step / 2) ** 2 + (y % step - step / 2) ** 2) < radius**2


def _noise(rng: Random, size: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.random.default_rng(rng.getrandbits(32)).random((size, size), dtype=np.float32)


def _blobs(rng: Random, size: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    cells = rng.randint(3, 8)
    coarse = bytes(rng.getrandbits(8) for _ in range(cells * cells))
    soft = Image.frombytes("L", (cells, cells), coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(soft, np.float32) / 255


def _horizon(rng: Random, size: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (y > size * rng.uniform(0.3, 0.8)) + 0 * x
