# SPDX-License-Identifier: Apache-2.0
"""What every patch of a scene shows, and the loss of telling it."""

import torch
import torch.nn.functional as F

from training.data.emoji_scenes import Scene
from vlmamba.models.vim import VimConfig

IGNORE = -100


class PatchNames:
    """Numbers the name that every patch of a scene shows; 0 is the background.

    A patch counts for a drawing whose box covers at least half of it, for the background below a tenth; the others
    are -100.

    Args:
        names: all names; the first is number 1.
        config: of the encoder that makes the patches.
    """

    def __init__(self, names: list[str], config: VimConfig):
        self.config = config
        self.number = {name: i + 1 for i, name in enumerate(names)}

    def __call__(self, scene: Scene) -> torch.Tensor:
        """`[rows * columns]` numbers."""
        rows, columns = self.config.grid_size
        cover = torch.zeros(len(scene.objects), rows, columns)
        for item, area in zip(scene.objects, cover, strict=True):
            area.copy_(torch.outer(self._share(item.y, item.h, rows), self._share(item.x, item.w, columns)))
        best, which = cover.max(0)
        numbers = torch.tensor([self.number[item.drawing.name] for item in scene.objects])
        labels = torch.where(best >= 0.5, numbers[which], IGNORE)
        return labels.masked_fill(cover.sum(0) < 0.1, 0).flatten()

    def _share(self, start: int, length: int, count: int) -> torch.Tensor:
        """How much of each patch, along one axis, the interval covers."""
        first = torch.arange(count) * self.config.patch_stride
        overlap = (first + self.config.patch_size).clamp(max=start + length) - first.clamp(min=start)
        return overlap.clamp(min=0) / self.config.patch_size


def patch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of patches `[patches, names]`; a quarter is the background's, however many patches that has."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none", label_smoothing=0.05)
    background, drawn = labels == 0, labels > 0
    # a batch may lack either
    means = [losses[kind].sum() / kind.sum().clamp(min=1) for kind in (background, drawn)]
    return (means[0] + 3 * means[1]) / 4
