# SPDX-License-Identifier: Apache-2.0
"""What a fused image is trained for: to keep the structure, the brighter pixels and the stronger edges of two sources.

Images are `[B, C, H, W]` in 0 to 1. Losses are computed in float32 or wider.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
# what MambaDFuse's published code trains for -> options of `guided_fusion_loss`
GUIDED_LOSSES = {"infrared": {}, "medical": {"weights": (50, 20, 100), "by_edges": False}}
# of the five levels of multi-scale SSIM (Wang et al., 2003)
_LEVELS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


class FusionLoss(NamedTuple):
    """A loss, a scalar tensor, and the weighted terms that it is the sum of."""

    total: Tensor
    structure: Tensor
    intensity: Tensor
    gradient: Tensor


def dynamic_fusion_loss(
    fused: Tensor, first: Tensor, second: Tensor, weights: tuple[float, float, float] = (10, 10, 1)
) -> FusionLoss:
    """FusionMamba's loss (arXiv:2404.09498), with the weights that its published code uses.

    1 - `multi_scale_ssim` with either source, mean; squared error to the brighter source; absolute error of the
    `sobel` edges to the stronger. The fused image is clamped to 0 to 1 first.

    Args:
        fused, first, second: `[B, C, H, W]`, sides of at least 16.
        weights: of structure, intensity and gradient.

    Raises:
        ValueError: shapes that differ or are too small.
    """
    fused, first, second = _checked(fused, first, second, side=16)
    fused = fused.clamp(0, 1)
    structure = sum(1 - multi_scale_ssim(source, fused) for source in (first, second)) / 2
    return _weighted(weights, structure, *_distances(fused, first, second, F.mse_loss))


def guided_fusion_loss(
    fused: Tensor,
    first: Tensor,
    second: Tensor,
    weights: tuple[float, float, float] = (10, 20, 20),
    by_edges: bool = True,
) -> FusionLoss:
    """MambaDFuse's loss (arXiv:2404.08406); the defaults are its published code's for infrared and visible images.

    1 - `ssim` with the sources, shared; absolute error to the brighter source; absolute error of the `sobel` edges to
    the stronger. `GUIDED_LOSSES` has the options for medical images.

    Args:
        fused, first, second: `[B, C, H, W]`.
        weights: of structure, intensity and gradient.
        by_edges: the sources share the similarity as the sums of their edges do; else in halves.

    Raises:
        ValueError: shapes that differ.
    """
    fused, first, second = _checked(fused, first, second, side=1)
    share = 0.5
    if by_edges:
        edges, edges_x = sobel(first).mean(), sobel(second).mean()
        # two blank sources share in halves
        share = torch.where(edges + edges_x > 0, edges / (edges + edges_x).clamp(min=1e-12), 0.5)
    structure = 1 - share * ssim(first, fused) - (1 - share) * ssim(second, fused)
    return _weighted(weights, structure, *_distances(fused, first, second, F.l1_loss))


def sobel(images: Tensor) -> Tensor:
    """|gx| + |gy| of every channel, `[B, C, H, W]` -> the same shape, zeros beyond the border."""
    kernel = torch.outer(images.new_tensor([1, 2, 1]), images.new_tensor([-1, 0, 1]))
    return _convolved(images, torch.stack([kernel, kernel.T]), padding=1).abs().sum(-3)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, mean over all: Gaussian windows of 11 x 11, zeros beyond the border; a scalar."""
    similarity, _ = _similarity(a, b, size=11, padding=5)
    return similarity


def multi_scale_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale similarity as FusionMamba's code has it, a scalar; sides of at least 16.

    Windows shrink to small images and stay within them; similarities v count (v + 1) / 2. The last level's enters once
    for each of the other four, where the measure (Wang et al., 2003) has it once.
    """
    contrasts = []
    for level, weight in enumerate(_LEVELS):
        if level:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        similarity, contrast = _similarity(a, b, size=min(11, *a.shape[2:]), padding=0)
        contrasts.append(((contrast + 1) / 2) ** weight)
    last = ((similarity + 1) / 2) ** _LEVELS[-1]
    return torch.stack(contrasts[:-1]).prod() * last ** (len(_LEVELS) - 1)


def _similarity(a: Tensor, b: Tensor, size: int, padding: int) -> tuple[Tensor, Tensor]:
    """Mean structural similarity, and mean of its factor of contrast and structure."""
    taps = torch.exp(-((torch.arange(size, device=a.device, dtype=a.dtype) - size // 2) ** 2) / (2 * 1.5**2))
    window = torch.outer(taps, taps)[None] / taps.sum() ** 2
    maps = torch.stack([a, b, a * a, b * b, a * b])
    mean, mean_b, square, square_b, product = _convolved(maps, window, padding)
    variances = square - mean**2 + square_b - mean_b**2
    contrast = (2 * (product - mean * mean_b) + 0.03**2) / (variances + 0.03**2)
    luminance = (2 * mean * mean_b + 0.01**2) / (mean**2 + mean_b**2 + 0.01**2)
    return (luminance * contrast).mean(), contrast.mean()


def _convolved(images: Tensor, kernels: Tensor, padding: int) -> Tensor:
    """`[..., H, W]` with K kernels `[K, h, w]`, each alone -> `[..., K, H', W']`."""
    # differences of squares vanish in half precision
    with torch.autocast(images.device.type, enabled=False):
        convolved = F.conv2d(images.flatten(0, -3)[:, None], kernels[:, None], padding=padding)
    return convolved.unflatten(0, images.shape[:-2])


def _distances(fused: Tensor, first: Tensor, second: Tensor, distance: Callable) -> tuple[Tensor, Tensor]:
    """To the brighter source, and of the edges to the stronger ones."""
    stronger = torch.maximum(sobel(first), sobel(second))
    return distance(fused, torch.maximum(first, second)), F.l1_loss(sobel(fused), stronger)


def _weighted(weights: tuple[float, float, float], *terms: Tensor) -> FusionLoss:
    terms = [weight * term for weight, term in zip(weights, terms, strict=True)]
    return FusionLoss(sum(terms), *terms)


def _checked(*images: Tensor, side: int) -> list[Tensor]:
    fused = images[0]
    if fused.dim() != 4 or min(fused.shape[2:]) < side:
        raise ValueError(f"fused has shape {tuple(fused.shape)}, expected [B, C, H, W] with H and W of at least {side}")
    for name, image in zip(("first", "second"), images[1:], strict=True):
        if image.shape != fused.shape:
            raise ValueError(f"{name} has shape {tuple(image.shape)} and fused {tuple(fused.shape)}, expected the same")
    wide = torch.promote_types(fused.dtype, torch.float32)
    return [image.to(wide) for image in images]
