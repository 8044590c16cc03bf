# SPDX-License-Identifier: Apache-2.0
"""Scores of a fused image, alone (EN, SD, SF, AG) and beside its two sources (the others).

Images are arrays or tensors `[H, W]`, or with leading dimensions of 1, of one channel in grey levels 0 to 255, uint8 or
float; scores are float64 numbers. The order of the sources does not matter. The defaults are what the evaluator of
CDDFuse (arXiv:2211.14461) gives, which papers of the field report; where other code differs, it is said. They are
meant for images as they are saved: round to whole grey levels first.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import uniform_filter
from scipy.signal import convolve2d

Image = ArrayLike | torch.Tensor


def entropy(fused: Image) -> float:
    """EN: bits of information in the histogram of the 256 grey levels; 0 for a constant image."""
    (fused,) = _images(fused)
    shares = np.bincount(_levels(fused)) / fused.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # never -0


def standard_deviation(fused: Image) -> float:
    """SD: standard deviation of the grey levels, divided by H * W."""
    (fused,) = _images(fused)
    return float(fused.std())


def spatial_frequency(fused: Image) -> float:
    """SF: root of the mean squared differences along rows plus those along columns."""
    (fused,) = _images(fused)
    return math.sqrt(sum((np.diff(fused, axis=axis) ** 2).mean() for axis in (0, 1)))


def average_gradient(fused: Image) -> float:
    """AG: mean over all pixels of sqrt((gx^2 + gy^2) / 2), central differences, one-sided at the border.

    The MATLAB code of Tang et al. divides the sum by (H - 1) * (W - 1) instead.
    """
    (fused,) = _images(fused)
    gy, gx = np.gradient(fused)
    return float(np.sqrt((gx**2 + gy**2) / 2).mean())


def mutual_information(fused: Image, first: Image, second: Image, base: float = math.e) -> float:
    """MI: information that the fused image shares with each source, summed; in nats.

    The MATLAB code of Tang et al. gives bits (`base=2`), and counts grey levels 254 and 255 as one.
    """
    fused, *sources = (_levels(image) for image in _images(fused, first, second))
    return sum(_shared_information(fused, source) for source in sources) / math.log(base)


def correlation(fused: Image, first: Image, second: Image) -> float:
    """CC: Pearson correlation of the fused image with each source, mean; 0 with a constant image."""
    fused, *sources = _images(fused, first, second)
    return sum(_pearson(fused, source) for source in sources) / 2


def sum_of_correlated_differences(fused: Image, first: Image, second: Image) -> float:
    """SCD: correlation of either source with what the fused image has beyond the other, summed.

    Where a difference is constant, as of a fused image that equals a source, the evaluators give NaN; here it counts 0.
    """
    fused, first, second = _images(fused, first, second)
    return _pearson(fused - second, first) + _pearson(fused - first, second)


def visual_information_fidelity(fused: Image, first: Image, second: Image) -> float:
    """VIF: pixel-domain visual information fidelity (Sheikh and Bovik, 2006) with each source, summed.

    Four scales and a noise variance of 2; sides of at least 41 pixels. A constant source, which holds no information,
    counts 0.
    """
    fused, *sources = _images(fused, first, second, side=41)
    return sum(_fidelity(source, fused) for source in sources)


def edge_transfer(fused: Image, first: Image, second: Image) -> float:
    """Qabf: how much of the sources' edges is kept, weighed by their strength (Xydeas and Petrovic, 2000); 0 to 1.

    Sobel edges, zeros beyond the border, so that a border that is not black is an edge; 0 where neither source has any.
    """
    (strength, angle), *sources = (_edges(image) for image in _images(fused, first, second))
    kept = total = 0.0
    for source_strength, source_angle in sources:
        stronger = np.maximum(strength, source_strength)
        ratio = np.divide(
            np.minimum(strength, source_strength), stronger, out=np.zeros_like(stronger), where=stronger > 0
        )
        # of equal edges the evaluators take the strength for the ratio, which saturates below
        ratio = np.where(strength == source_strength, strength, ratio)
        turned = 1 - np.abs(source_angle - angle) * 2 / np.pi
        quality = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + np.exp(-22 * (turned - 0.8)))
        kept += (quality * source_strength).sum()
        total += source_strength.sum()
    return float(kept / total) if total else 0.0


def ssim(fused: Image, first: Image, second: Image, data_range: float = 2.0) -> float:
    """SSIM: structural similarity (Wang et al., 2004) with each source, summed.

    Windows of 7 x 7, none across the border. The evaluator calls scikit-image 0.19 without a data range, which then
    takes 2, though grey levels reach 255: that is what papers report and the default here. `data_range=255` is the
    measure as it was meant.
    """
    fused, *sources = _images(fused, first, second, side=7)
    if not data_range > 0:
        raise ValueError(f"ssim: data_range is {data_range}, expected a positive number")
    return sum(_similarity(fused, source, data_range) for source in sources)


def psnr(fused: Image, first: Image, second: Image, peak: float | None = None) -> float:
    """PSNR in decibels, of the mean of the squared errors against both sources; infinite where there is none.

    Args:
        peak: the signal's largest value; by default the fused image's, as the evaluator has it. `peak=255` is the
            usual one.
    """
    fused, *sources = _images(fused, first, second)
    peak = fused.max() if peak is None else peak
    error = sum(((fused - source) ** 2).mean() for source in sources) / 2
    if not error:
        return math.inf
    return 10 * math.log10(peak**2 / error) if peak > 0 else -math.inf


def fusion_scores(fused: Image, first: Image, second: Image) -> dict[str, float]:
    """All scores by the names that papers use, each with its defaults.

    Raises:
        ValueError: sizes that differ, sides below 41 pixels, values that are not finite grey levels 0 to 255.

    Example:
        >>> fused = model(pixel_values=infrared / 255, pixel_values_x=visible / 255).fused
        >>> fusion_scores((fused.clamp(0, 1) * 255).round(), infrared, visible)["Qabf"]
    """
    alone = {"EN": entropy, "SD": standard_deviation, "SF": spatial_frequency, "AG": average_gradient}
    beside = {
        "MI": mutual_information,
        "SCD": sum_of_correlated_differences,
        "VIF": visual_information_fidelity,
        "Qabf": edge_transfer,
        "CC": correlation,
        "SSIM": ssim,
        "PSNR": psnr,
    }
    scores = {name: score(fused) for name, score in alone.items()}
    return scores | {name: score(fused, first, second) for name, score in beside.items()}


def _images(fused: Image, *sources: Image, side: int = 2) -> list[np.ndarray]:
    """Checked images as float64 `[H, W]`."""
    names = ("fused", "first", "second")
    images = [_image(name, image, side) for name, image in zip(names, (fused, *sources), strict=False)]
    for name, image in zip(names, images, strict=False):
        if image.shape != images[0].shape:
            raise ValueError(f"{name} has {image.shape} pixels and fused {images[0].shape}, expected the same size")
    return images


def _image(name: str, image: Image, side: int) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().double().numpy()
    array = np.asarray(image)
    if array.dtype.kind not in "uif":
        raise ValueError(f"{name} has dtype {array.dtype}, expected integers or floating point")
    if array.ndim < 2 or any(size != 1 for size in array.shape[:-2]) or min(array.shape[-2:]) < side:
        raise ValueError(
            f"{name} has shape {array.shape}, expected one image of one channel [H, W] with sides of {side} or more"
        )
    array = array.reshape(array.shape[-2:]).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite, expected grey levels 0 to 255")
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"{name} has values {array.min():.4g} to {array.max():.4g}, expected grey levels 0 to 255")
    if array.max() <= 1 and (array % 1).any():
        raise ValueError(f"{name} has fractions of 0 to 1, expected grey levels 0 to 255: multiply by 255")
    return array


def _levels(image: np.ndarray) -> np.ndarray:
    return np.round(image).astype(np.int64).ravel()


def _shared_information(a: np.ndarray, b: np.ndarray) -> float:
    joint = np.bincount(256 * a + b, minlength=256**2).reshape(256, 256) / a.size
    independent = np.outer(joint.sum(1), joint.sum(0))
    there = joint > 0
    # rounding may fall below none
    return max(0.0, float((joint[there] * np.log(joint[there] / independent[there])).sum()))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    # what rounding leaves of a constant is no variance
    norms = [0.0 if np.ptp(v) < 1e-9 else np.linalg.norm(v) for v in (a, b)]
    return float((a * b).sum() / math.prod(norms)) if all(norms) else 0.0


def _fidelity(reference: np.ndarray, image: np.ndarray, noise: float = 2.0, eps: float = 1e-10) -> float:
    """Information about the scene in the image over that in the reference."""
    numerator = denominator = 0.0
    for size in (17, 9, 5, 3):
        taps = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * (size / 5) ** 2))
        taps /= taps.sum()
        if size < 17:
            reference, image = (_averaged(v, taps)[::2, ::2] for v in (reference, image))
        mean, image_mean = _averaged(reference, taps), _averaged(image, taps)
        variance = np.maximum(_averaged(reference**2, taps) - mean**2, 0)
        image_variance = np.maximum(_averaged(image**2, taps) - image_mean**2, 0)
        covariance = _averaged(reference * image, taps) - mean * image_mean
        flat, image_flat = variance < eps, image_variance < eps
        # the image as gain * reference + noise of its own
        gain = np.where(flat | image_flat, 0, covariance / (variance + eps))
        own = np.where(flat, image_variance, image_variance - gain * covariance)
        own = np.where(image_flat, 0, np.where(gain < 0, image_variance, own))
        gain, own, variance = np.maximum(gain, 0), np.maximum(own, eps), np.where(flat, 0, variance)
        numerator += np.log10(1 + gain**2 * variance / (own + noise)).sum()
        denominator += np.log10(1 + variance / noise).sum()
    return float(numerator / denominator) if denominator else 0.0


def _averaged(image: np.ndarray, taps: np.ndarray) -> np.ndarray:
    return convolve2d(convolve2d(image, taps[:, None], "valid"), taps[None], "valid")


def _edges(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strength and angle, in -pi / 2 to pi / 2, of the edge at every pixel."""
    sobel = np.outer([1, 2, 1], [-1, 0, 1])
    x, y = convolve2d(image, sobel, "same"), convolve2d(image, -sobel.T, "same")
    angle = np.arctan(np.divide(y, x, out=np.zeros_like(x), where=x != 0))
    return np.hypot(x, y), np.where(x == 0, np.pi / 2, angle)


def _similarity(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    window, unbiased = 7, 49 / 48
    mean, mean_b = uniform_filter(a, window), uniform_filter(b, window)
    variance = unbiased * (uniform_filter(a * a, window) - mean**2)
    variance_b = unbiased * (uniform_filter(b * b, window) - mean_b**2)
    covariance = unbiased * (uniform_filter(a * b, window) - mean * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean * mean_b + c1) / (mean**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance + variance_b + c2)
    inner = slice(window // 2, -(window // 2))
    return float((luminance * structure)[inner, inner].mean())
