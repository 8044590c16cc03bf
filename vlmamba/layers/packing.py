# SPDX-License-Identifier: Apache-2.0
"""Padding out of the way: what a convolution and a scan see of a padded batch is what they would see unpadded."""

import torch


class Packing:
    """Valid tokens first, padding last, in every row.

    Args:
        attention_mask: `[B, >= L]`, 0 for padding anywhere; its last L columns count.
        batch, length: of the tokens.

    Raises:
        ValueError: the mask has another shape.
    """

    def __init__(self, attention_mask: torch.Tensor, batch: int, length: int):
        if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < length:
            expected = f"({batch}, at least {length})"
            raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected {expected}")
        mask = attention_mask[:, -length:].bool()
        self.order = mask.logical_not().long().argsort(dim=1, stable=True)
        self.inverse = self.order.argsort(dim=1)
        self.lengths = mask.sum(1)
        self.valid = torch.arange(length, device=mask.device) < self.lengths[:, None]

    @classmethod
    def of(cls, attention_mask: torch.Tensor | None, hidden_states: torch.Tensor) -> "Packing | None":
        """The packing for `[B, L, ...]` tokens; None where nothing is padded."""
        if attention_mask is None:
            return None
        batch, length = hidden_states.shape[:2]
        if torch.compiler.is_compiling() or attention_mask.is_inference():
            return cls(attention_mask, batch, length)
        # every layer of a model comes with the same mask: it is read once
        key = (attention_mask._version, batch, length)
        known = getattr(attention_mask, "_vlmamba_packing", None)
        if known is None or known[0] != key:
            packing = cls(attention_mask, batch, length)
            known = (key, None if bool(packing.valid.all()) else packing)
            attention_mask._vlmamba_packing = known
        return known[1]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[B, L]` or `[B, L, D]` with the padding moved to the end."""
        return self._take(tensor, self.order)

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        """The other way."""
        return self._take(tensor, self.inverse)

    def recent(self, seen: torch.Tensor, width: int) -> torch.Tensor:
        """The `width` tokens before each row's end, of `[B, width + L, D]` that begin with `width` earlier ones."""
        index = self.lengths[:, None] + torch.arange(width, device=seen.device)
        return self._take(seen, index)

    @staticmethod
    def _take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 3:
            index = index.unsqueeze(-1).expand(-1, -1, tensor.shape[2])
        return tensor.gather(1, index)
