# SPDX-License-Identifier: Apache-2.0
"""How good an answer is: scores as the papers of a field report them."""

from vlmamba.metrics.fusion import (
    average_gradient,
    correlation,
    edge_transfer,
    entropy,
    fusion_scores,
    mutual_information,
    psnr,
    spatial_frequency,
    ssim,
    standard_deviation,
    sum_of_correlated_differences,
    visual_information_fidelity,
)

__all__ = [
    "average_gradient",
    "correlation",
    "edge_transfer",
    "entropy",
    "fusion_scores",
    "mutual_information",
    "psnr",
    "spatial_frequency",
    "ssim",
    "standard_deviation",
    "sum_of_correlated_differences",
    "visual_information_fidelity",
]
