# SPDX-License-Identifier: Apache-2.0
"""Random arguments of Mamba-2's scan, shared by the backends' tests."""

import math
from dataclasses import dataclass

import torch

from vlmamba.ops import ssd_scan, use_backend


@dataclass
class Case:
    """Shapes and options of one call."""

    length: int
    heads: int = 4
    size: int = 5
    groups: int = 2
    states: int = 7
    batch: int = 2
    chunk_size: int = 64
    options: tuple[str, ...] = ("D", "z", "dt_bias", "initial_state")
    packed: bool = False
    limit: tuple[float, float] = (0.0, math.inf)

    def __str__(self) -> str:
        name = f"L{self.length}-H{self.heads}-P{self.size}-G{self.groups}-N{self.states}-chunk{self.chunk_size}"
        limited = "" if self.limit[1] == math.inf else "-limited"
        return name + ("-packed" if self.packed else "") + ("" if self.options else "-bare") + limited

    def tensors(self) -> dict[str, torch.Tensor]:
        """Float64 arguments that need gradients."""
        b, n, h, p, g, s = self.batch, self.length, self.heads, self.size, self.groups, self.states
        made = {
            "x": torch.randn(b, n, h, p),
            "dt": torch.randn(b, n, h) - 1,
            "A": -torch.rand(h) * 2 - 0.1,
            "B": torch.randn(b, n, g, s),
            "C": torch.randn(b, n, g, s),
            "D": torch.randn(h, p),
            "z": torch.randn(b, n, h, p),
            "dt_bias": torch.randn(h),
            "initial_state": torch.randn(b, h, p, s),
        }
        optional = {"D", "z", "dt_bias", "initial_state"}
        return {name: v.double() for name, v in made.items() if name not in optional or name in self.options}

    def fixed(self) -> dict[str, object]:
        """Arguments without gradients."""
        # numbers come back, so that only where they change can tell the sequences apart
        packed = (torch.rand(self.batch, self.length) < 0.1).cumsum(1).remainder(2).int()
        seq_idx = packed if self.packed else None
        return {"chunk_size": self.chunk_size, "dt_limit": self.limit, "seq_idx": seq_idx}


CASES = [
    *(Case(length) for length in (1, 7, 63, 64, 65, 200)),
    Case(37, heads=3, size=1, groups=3, states=1, chunk_size=5),
    Case(64, heads=6, size=17, groups=1, states=16, chunk_size=16),
    Case(33, heads=1, size=3, groups=1, states=33, batch=1, chunk_size=1),
    Case(70, options=(), chunk_size=256),
    Case(70, options=("D",), chunk_size=7),
    Case(60, packed=True, chunk_size=16),
    Case(60, packed=True, options=("dt_bias",), chunk_size=60),
    Case(40, limit=(0.2, 0.8), chunk_size=16),
]


def run(backend: str, tensors: dict, fixed: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output, last state and all gradients, for fixed cotangents."""
    inputs = {name: v.detach().to(dtype).requires_grad_() for name, v in tensors.items()}
    with use_backend(backend):
        y, state = ssd_scan(**inputs, **fixed, return_final_state=True)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (v * torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype)).sum() for v in (y, state)
    )
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y, "state": state, **{f"d{n}": g for n, g in zip(inputs, gradients, strict=True)}}
