# SPDX-License-Identifier: Apache-2.0
"""Chat examples to batches, with the loss on the answers only."""

from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

ASSISTANT_TOKEN = "<|assistant|>"
IGNORE = -100


def answer_labels(input_ids: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """`[B, L]` token ids -> labels: the tokens after every `start` up to and with the next `end`, else -100."""
    opened = (input_ids == start).cumsum(1)
    closed = (input_ids == end).cumsum(1)
    # an `end` closes after itself
    inside = (opened > closed - (input_ids == end).long()) & (input_ids != start)
    return torch.where(inside, input_ids, IGNORE)


class ChatCollator:
    """Collates chat examples for training a VLM.

    Args:
        processor: a `VLMambaProcessor`.

    Each example is `{"messages": [{"role", "content"}, ...], "images": [image, ...]}`, as trl and the chat template
    take it. A call returns `input_ids`, `attention_mask`, `pixel_values` and `labels` (-100 outside the answers).
    """

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor
        self.start = processor.tokenizer.convert_tokens_to_ids(ASSISTANT_TOKEN)
        self.end = processor.tokenizer.eos_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> BatchFeature:
        texts = [self.processor.apply_chat_template(example["messages"]) for example in examples]
        images = [image for example in examples for image in example["images"]]
        batch = self.processor(
            images=images or None, text=texts, padding=True, padding_side="right", return_tensors="pt"
        )
        labels = answer_labels(batch["input_ids"], self.start, self.end)
        batch["labels"] = labels.masked_fill(batch["attention_mask"] == 0, IGNORE)
        return batch
