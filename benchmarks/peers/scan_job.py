# SPDX-License-Identifier: Apache-2.0
"""A selective scan as one provider wants it: its operands in its own layout, and a function of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.shapes import ScanShape
from vlmamba.ops import use_backend

Operands = dict[str, torch.Tensor]


@dataclass
class ScanJob:
    """One provider's scan of one shape.

    Args:
        operands: leaves, in the provider's layout.
        function: operands -> y.
        layout: brings our y (`"y"`) or the gradient of one of our operands into the provider's layout, for comparing.
        backend: of `vlmamba.ops`, in force during forward and backward.
    """

    operands: Operands
    function: Callable[..., torch.Tensor]
    layout: Callable[[str, torch.Tensor], torch.Tensor]
    backend: str = "auto"

    def forward(self) -> torch.Tensor:
        """y without gradients."""
        with torch.no_grad(), use_backend(self.backend):
            return self.function(**self.operands)

    def training(self, dy: torch.Tensor) -> Operands:
        """y and the gradient of every operand, for dy in the provider's layout."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.operands.items()}
        with use_backend(self.backend):
            y = self.function(**leaves)
            gradients = torch.autograd.grad(y, list(leaves.values()), dy)
        return {"y": y.detach()} | dict(zip(leaves, gradients, strict=True))


Scan = Callable[..., torch.Tensor]


def in_path_order(shape: ScanShape, scan: Scan, channels_first: bool) -> ScanJob:
    """A provider that scans a contiguous sequence: x is gathered along the paths and the results are merged again.

    dt, B and C lie in path order already, as models that gather before their projections have them (VMamba, Vim).

    Args:
        shape: what is scanned.
        scan: `(x, dt, A, B, C, D, dt_bias) -> y`; x, dt and y are `[B, K, L, D]`, B and C `[B, K, L, N]`.
        channels_first: the sequence is the last dimension everywhere instead of the one before: `[B, K, D, L]`.
    """
    paths = shape.paths()
    rows = -1 if channels_first else -2
    index = None if paths is None else paths.long().flatten()

    def take(value: torch.Tensor) -> torch.Tensor:
        """Rows -> path order `[B, K, ...]`; `[B, ...]` is shared by the directions."""
        if index is None:
            return value.unsqueeze(1) if value.dim() == 3 else value
        if value.dim() == 4:
            each = zip(value.unbind(1), paths.long(), strict=True)
            return torch.stack([v.index_select(rows, path) for v, path in each], dim=1)
        value = value.index_select(rows, index).unflatten(rows, paths.shape)
        return value.transpose(1, 2) if channels_first else value

    def merge(y: torch.Tensor) -> torch.Tensor:
        """`[B, K, ...]` in path order -> `[B, ...]` in rows, the sum over directions."""
        if index is None:
            return y.squeeze(1)
        out = torch.zeros_like(y[:, 0])
        y = (y.transpose(1, 2) if channels_first else y).flatten(rows - 1, rows)
        return out.index_add_(rows, index, y)

    def layout(name: str, value: torch.Tensor) -> torch.Tensor:
        if name in ("A", "D", "dt_bias"):
            return value
        value = value.transpose(-1, -2) if channels_first else value
        return (take(value) if name in ("dt", "B", "C") else value).contiguous()

    def function(x, dt, A, B, C, D, dt_bias, z=None) -> torch.Tensor:
        y = merge(scan(take(x), dt, A, B, C, D, dt_bias))
        return y if z is None else y * F.silu(z)

    return ScanJob({name: layout(name, value) for name, value in shape.inputs().items()}, function, layout)
