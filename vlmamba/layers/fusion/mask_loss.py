# SPDX-License-Identifier: Apache-2.0
"""The loss of a mask that a sentence asks for (ReMamber, arXiv:2403.17839), computed in float32 or wider."""

import torch
from torchvision.ops import sigmoid_focal_loss

from vlmamba.ops.numerics import widened


def dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 - (2 |p y| + 1) / (|p| + |y| + 1) of every mask, and their mean; p is the sigmoid of the logits.

    Args:
        logits: `[B, ...]`.
        labels: of the same shape, in [0, 1].
    """
    p = widened(logits).sigmoid().flatten(1)
    y = labels.to(p.dtype).flatten(1)
    return (1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)).mean()


def mask_loss(logits: torch.Tensor, labels: torch.Tensor, alpha: float = -1.0, gamma: float = 0.0) -> torch.Tensor:
    """Dice plus focal loss; by default, as published, the latter is plain binary cross-entropy.

    Args:
        logits: `[B, ...]`.
        labels: of the same shape, in [0, 1].
        alpha: weight of the mask against 1 - alpha of the rest; none when negative.
        gamma: how little pixels count that are right already.

    Raises:
        ValueError: the shapes differ.
    """
    if labels.shape != logits.shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected that of the logits, {tuple(logits.shape)}")
    logits = widened(logits)
    focal = sigmoid_focal_loss(logits, labels.to(logits.dtype), alpha, gamma, reduction="mean")
    return dice_loss(logits, labels) + focal
