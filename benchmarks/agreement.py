# SPDX-License-Identifier: Apache-2.0
"""No ratio without agreement: what is timed must compute the same thing."""

import torch

# largest difference over the largest magnitude; a guard against comparing different functions, wider than the
# tests' tolerances because peers accumulate in their own ways
VALUE = 1e-4
GRADIENT = 1e-3
# whole models in float32 repeat an op's error over their layers; in low precision the root mean square counts
MODEL = 1e-3
LOW_PRECISION = 0.1


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude; infinite for another shape or what is not finite."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return float("inf")
    return ((found.float() - expected.float()).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def rms_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of `expected`; infinite as in `difference`."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return float("inf")
    return ((found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-6)).item()
