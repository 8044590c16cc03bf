# SPDX-License-Identifier: Apache-2.0
"""The tolerances, in one table; no test writes one of its own."""

import torch

# largest error over the reference's largest magnitude
VALUE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
# int8 weights may meet inputs that were rounded to 16 bits
INT8 = {**VALUE, torch.float32: 1e-4}
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


# where plain PyTorch is exact by luck: a few roundings of the result's dtype
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def assert_no_worse_than_torch(
    name: str, ours: torch.Tensor, plain: torch.Tensor, reference: torch.Tensor, floors: dict = FLOOR
) -> None:
    """Fail unless ours is at most twice (gradients thrice) as far from `reference` as what plain PyTorch makes."""
    assert torch.isfinite(ours).all(), f"{name}: not finite"
    scale = max(reference.abs().max().item(), 1e-3)
    error, allowed = ((v.to(reference.dtype) - reference).abs().max().item() / scale for v in (ours, plain))
    factor = 3 if name.startswith("d") else 2
    assert error <= factor * allowed + floors[ours.dtype], (
        f"{name}: relative error {error:.3g}, plain PyTorch makes {allowed:.3g}"
    )
