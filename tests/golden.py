# SPDX-License-Identifier: Apache-2.0
"""Outputs of the official implementations: all where `VLMAMBA_GOLDEN_DIR` says, else the few in `tests/fixtures`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FOLDER = Path(os.environ.get("VLMAMBA_GOLDEN_DIR") or Path(__file__).parent / "fixtures")
RELATIVE = 1e-4
# fixtures whose name ends so see a wrong norm epsilon
RELATIVE_EPS = 2e-5


@dataclass
class Golden:
    """One fixture."""

    name: str
    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    io: dict[str, torch.Tensor]

    @property
    def arguments(self) -> dict[str, Any]:
        """The official constructor's arguments."""
        return self.config.get("constructor") or self.config["args"]

    def check(self, ours: torch.Tensor, key: str, relative: float | None = None) -> None:
        """Fail unless `ours` is within the pass rule of the output `key`."""
        relative = relative or (RELATIVE_EPS if self.name.endswith("-eps") else RELATIVE)
        expected = self.io[key].to(ours.dtype)
        assert ours.shape == expected.shape
        error, scale = (ours - expected).abs().max().item(), expected.abs().max().item()
        assert error <= relative * scale, f"{self.name} {key}: error {error:.3g}, largest value {scale:.3g}"


def names(prefix: str) -> list[str]:
    """The fixtures there are whose names begin so."""
    return sorted(path.parent.name for path in FOLDER.glob(f"{prefix}*/io.safetensors"))


def load(name: str) -> Golden:
    """Read one fixture."""
    folder = FOLDER / name
    weights = folder / "weights.safetensors"
    return Golden(
        name,
        json.loads((folder / "config.json").read_text()),
        load_file(weights) if weights.exists() else {},
        load_file(folder / "io.safetensors"),
    )


def published_keys(prefix: str) -> list[Path]:
    """Key lists of full-size published models whose names begin so."""
    return sorted((FOLDER / "keys").glob(f"{prefix}*.json"))
