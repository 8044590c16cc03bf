# SPDX-License-Identifier: Apache-2.0
"""The tolerances, in one table; no test writes one of its own."""

import torch

# largest error over the reference's largest magnitude
VALUE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
GRADIENT = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def assert_close(name: str, ours: torch.Tensor, reference: torch.Tensor, table: dict = VALUE) -> None:
    """Fail unless `ours` is finite and near `reference` (which is wider) by the table for ours' dtype."""
    assert ours.shape == reference.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(reference.shape)}"
    assert torch.isfinite(ours).all(), f"{name}: not finite"
    if not ours.numel():
        return
    difference = (ours.to(reference.dtype) - reference).abs()
    scale = max(reference.abs().max().item(), 1e-3)
    error = difference.max().item() / scale
    worst = torch.unravel_index(difference.argmax(), difference.shape) if difference.dim() else ()
    assert error <= table[ours.dtype], (
        f"{name}: relative error {error:.3g} above {table[ours.dtype]:.3g}, worst at {tuple(map(int, worst))}"
    )
