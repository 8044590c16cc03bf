# SPDX-License-Identifier: Apache-2.0
"""Examples of the first training step of a rationale traversal."""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from vlmamba.data.collators import ChatCollator
from vlmamba.models.vlmamba.rationale import TOR_TOKEN, spread_tor


class RationaleCollator(ChatCollator):
    """Collates chat examples for a first training step as Meteor's (arXiv:2405.15574) is described.

    The small model of the traversal reads the question and, with the `<tor>` tokens spread in it, the rationale. The
    language model, which `model.set_stage("rationale")` freezes, reads the question and what comes through at the
    `<tor>` tokens; the loss is on the rationale that it says then, and so teaches the traversal what to keep of it.
    The second step takes answers, by `ChatCollator` and `model.set_stage("finetune")`.

    Args:
        processor: a `VLMambaProcessor` with `num_tor_tokens`, whose chat template ends a question with `<tor>`.

    Each example is that of `ChatCollator` with `rationale`, a text. What is said after the last question does not
    matter. A call returns what `ChatCollator`'s does, `rationale_input_ids` and `rationale_attention_mask`.

    Example:
        >>> model.set_stage("rationale")
        >>> loss = model(**RationaleCollator(processor)(examples)).loss
    """

    def __init__(self, processor: ProcessorMixin):
        super().__init__(processor)
        self.tor_token_id = processor.tokenizer.convert_tokens_to_ids(TOR_TOKEN)
        if not processor.num_tor_tokens:
            raise ValueError("processor: its num_tor_tokens is 0, expected as many as the traversal is to have")

    def __call__(self, examples: list[dict[str, Any]]) -> BatchFeature:
        """Batch examples.

        Raises:
            ValueError: a rationale has too few words (`spread_tor`), or no question ends with `<tor>`.
        """
        batch = super().__call__([{**example, "messages": _said(example)} for example in examples])
        pad = self.processor.tokenizer.pad_token_id
        rows = [
            self._traversed(ids[mask.bool()], example["rationale"])
            for ids, mask, example in zip(batch["input_ids"], batch["attention_mask"], examples, strict=True)
        ]
        batch["rationale_input_ids"] = pad_sequence(rows, batch_first=True, padding_value=pad)
        masks = [torch.ones_like(row) for row in rows]
        batch["rationale_attention_mask"] = pad_sequence(masks, batch_first=True)
        return batch

    def _traversed(self, ids: torch.Tensor, rationale: str) -> torch.Tensor:
        """The prompt before the last `<tor>` tokens, then the rationale with them."""
        count = self.processor.num_tor_tokens
        places = (ids == self.tor_token_id).nonzero().flatten()
        if len(places) < count:
            raise ValueError(f"the prompt has {len(places)} {TOR_TOKEN}, expected {count}: of the chat template")
        text = spread_tor(rationale, count)
        spread = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return torch.cat([ids[: places[-count]], spread])


def _said(example: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages up to the last question, which the rationale answers."""
    messages = list(example["messages"])
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return [*messages, {"role": "assistant", "content": example["rationale"]}]
