# SPDX-License-Identifier: Apache-2.0
"""Random arguments of the selective scan, shared by the backends' tests."""

from dataclasses import dataclass

import torch


@dataclass
class Case:
    """Shapes and options of one call; `paths` is "none", "permutation", "padded" or "partial"."""

    length: int
    channels: int = 6
    states: int = 3
    batch: int = 2
    directions: int = 1
    paths: str = "none"
    options: tuple[str, ...] = ("D", "z", "dt_bias", "initial_state")
    packed: bool = False

    def __str__(self) -> str:
        name = f"L{self.length}-D{self.channels}-N{self.states}-B{self.batch}-K{self.directions}-{self.paths}"
        return name + ("-packed" if self.packed else "") + ("" if self.options else "-bare")

    def table(self) -> torch.Tensor | None:
        """The index table."""
        if self.paths == "none":
            return None
        rows = torch.stack([torch.randperm(self.length) for _ in range(self.directions)])
        if self.paths == "padded":
            rows = torch.cat([rows, torch.full((self.directions, 5), -1)], dim=1)
            rows = rows[:, torch.randperm(rows.shape[1])]
        if self.paths == "partial":
            rows = rows[:, : max(1, self.length // 2)]
        return rows.int()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Float64 arguments that need gradients."""
        b, k, n, d, s = self.batch, self.directions, self.length, self.channels, self.states
        made = {
            "x": torch.randn(b, k, n, d, dtype=torch.float64),
            "dt": torch.randn(b, k, n, d, dtype=torch.float64) - 1,
            "A": -torch.rand(k, d, s, dtype=torch.float64) * 2 - 0.1,
            "B": torch.randn(b, k, n, s, dtype=torch.float64),
            "C": torch.randn(b, k, n, s, dtype=torch.float64),
            "D": torch.randn(k, d, dtype=torch.float64),
            "z": torch.randn(b, n, d, dtype=torch.float64),
            "dt_bias": torch.randn(k, d, dtype=torch.float64),
            "initial_state": torch.randn(b, k, d, s, dtype=torch.float64),
        }
        optional = {"D", "z", "dt_bias", "initial_state"}
        return {name: v for name, v in made.items() if name not in optional or name in self.options}

    def fixed(self) -> dict[str, object]:
        """Arguments without gradients."""
        seq_idx = None
        if self.packed:
            seq_idx = (torch.rand(self.batch, self.length) < 0.2).cumsum(1).int()
        return {"paths": self.table(), "seq_idx": seq_idx}


CASES = [
    *(Case(length) for length in (1, 7, 63, 64, 65, 200)),
    Case(37, channels=17, states=1, directions=4, paths="permutation"),
    Case(37, channels=5, states=16, directions=2, paths="permutation"),
    Case(24, channels=33, states=17, directions=2, paths="padded"),
    Case(24, channels=3, states=8, directions=3, paths="partial"),
    Case(70, directions=2, options=()),
    Case(70, batch=1, options=("D",)),
    Case(50, packed=True),
    Case(50, directions=2, paths="permutation", packed=True),
]
