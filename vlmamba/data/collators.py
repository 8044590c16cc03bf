# SPDX-License-Identifier: Apache-2.0
"""Chat examples to batches, with the loss on the answers only."""

from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

ASSISTANT_TOKEN = "<|assistant|>"
IGNORE = -100


def answer_labels(input_ids: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """`[B, L]` token ids -> labels: the tokens after every `start` up to and with the next `end`, else -100."""
    position = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)

    def last(token: int) -> torch.Tensor:
        """Where `token` stood last, up to here; -1 before the first."""
        return position.masked_fill(input_ids != token, -1).cummax(1).values

    # an `end` still belongs to what it ends
    ended = torch.nn.functional.pad(last(end)[:, :-1], (1, 0), value=-1)
    inside = (last(start) > ended) & (input_ids != start)
    return torch.where(inside, input_ids, IGNORE)


class ChatCollator:
    """Collates chat examples for training a VLM.

    Args:
        processor: a `VLMambaProcessor`.

    Each example is `{"messages": [{"role", "content"}, ...], "images": [image, ...]}`, as trl and the chat
    template take it; `images` may be absent. A call returns `input_ids`, `attention_mask`, `pixel_values` and
    `labels` (-100 outside of the answers).
    """

    def __init__(self, processor: ProcessorMixin):
        if ASSISTANT_TOKEN not in processor.tokenizer.get_vocab():
            raise ValueError(
                f"processor: its tokenizer has no token {ASSISTANT_TOKEN}, as Cobra's; take the answers of its prompts "
                "from apply_chat_template(..., return_assistant_tokens_mask=True), as trl's assistant_only_loss does"
            )
        self.processor = processor
        self.start = processor.tokenizer.convert_tokens_to_ids(ASSISTANT_TOKEN)
        self.end = processor.tokenizer.eos_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> BatchFeature:
        texts = [self.processor.apply_chat_template(example["messages"]) for example in examples]
        # datasets fills an absent column in with None
        images = [image for example in examples for image in example.get("images") or []]
        batch = self.processor(
            images=images or None, text=texts, padding=True, padding_side="right", return_tensors="pt"
        )
        labels = answer_labels(batch["input_ids"], self.start, self.end)
        batch["labels"] = labels.masked_fill(batch["attention_mask"] == 0, IGNORE)
        return batch
