# SPDX-License-Identifier: Apache-2.0
"""The images of a prompt that is read in pieces: encoded when a piece needs them, forgotten when it is read."""

from collections.abc import Callable, Sequence

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling


class PromptImages:
    """Gives each piece of a prompt the features that stand at its placeholders.

    Args:
        places: bool `[B, L]`, the prompt's placeholders.
        images: in reading order, all of one size: pixels `[images, C, H, W]`, or features that are known already.
        encode: some of the images -> their features, `[tokens, hidden_size]` each.
        mismatch: makes the error, of the number of placeholders and of features.

    Raises:
        ValueError: there are more or fewer placeholders than image features.
    """

    def __init__(
        self,
        places: torch.Tensor,
        images: torch.Tensor | Sequence[torch.Tensor],
        encode: Callable[[torch.Tensor | list[torch.Tensor]], list[torch.Tensor]],
        mismatch: Callable[[int, int], ValueError],
    ):
        self.places = places
        self.images = images
        self.encode = encode
        self.features = {0: encode(images[:1])[0]}
        self.tokens = len(self.features[0])
        found, given = int(places.sum()), self.tokens * len(images)
        if found != given:
            raise mismatch(found, given)
        # which feature is read where, and the column after which an image is read
        self.rows = torch.zeros_like(places, dtype=torch.long)
        self.rows[places] = torch.arange(found, device=places.device)
        self.last_columns = places.nonzero()[self.tokens - 1 :: self.tokens, 1].tolist()

    def of(self, piece: slice) -> dict[str, BaseModelOutputWithPooling] | None:
        """`mm_encoder_outputs` for columns of the prompt; pieces come in their order."""
        rows = self.rows[:, piece][self.places[:, piece]]
        if not len(rows):
            return None
        needed = torch.unique(rows // self.tokens)
        numbers = needed.tolist()
        if missing := [number for number in numbers if number not in self.features]:
            self.features |= zip(missing, self.encode(self._chosen(missing)), strict=True)
        features = torch.cat([self.features[number] for number in numbers])
        index = torch.searchsorted(needed, rows // self.tokens) * self.tokens + rows % self.tokens
        found = features[index.to(features.device)]
        self.features = {n: kept for n, kept in self.features.items() if self.last_columns[n] >= piece.stop}
        return {"image": BaseModelOutputWithPooling(pooler_output=[found])}

    def _chosen(self, numbers: list[int]) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(self.images, torch.Tensor):
            return self.images[numbers]
        return [self.images[number] for number in numbers]
