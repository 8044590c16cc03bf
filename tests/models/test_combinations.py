# SPDX-License-Identifier: Apache-2.0
"""All ways of generating at once, drawn by chance: they answer as each prompt alone, recomputed without any cache."""

from functools import cache
from random import Random

import pytest
import torch

from tests.close import assert_close
from tests.models.encoders import TINY
from tests.models.prompts import processed
from tests.models.tiny import LANGUAGE_MODELS, WORDS, tiny_config, tiny_model, tiny_processor, tiny_text_config
from vlmamba.models.vision_features import vision_size

SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
VIM = tiny_config().vision_config.to_dict()
ENCODERS = {
    "vim": VIM,
    "vmamba": {"model_type": "vmamba", **TINY["vmamba"], "image_size": 64},
    "siglip": SIGLIP,
    "fused": {"model_type": "fused_vision", "encoders": [SIGLIP, VIM]},
}


@cache
def parts(family: str, projector: str, encoder: str):
    """A model and its processor."""
    connector = {"projector_type": projector, "scan": "cross_scan", "state_size": 4, "pool_size": 2}
    vision, text = ENCODERS[encoder], tiny_text_config(family)
    model = tiny_model(vision_config=vision, projector_config=connector, text_config=text)
    model.generation_config.suppress_tokens = [0, 1, 3, 4, 5, 6]
    processor = tiny_processor()
    height, width = vision_size(model.config.vision_config)
    processor.image_processor.size = {"height": height, "width": width}
    processor.num_image_tokens = model.config.image_seq_length
    return model, processor


class Prompts:
    """Texts with pictures of any sizes among their words, and how they are processed."""

    def __init__(self, random: Random, processor, fused: bool):
        self.random, self.processor, self.fused = random, processor, fused
        self.tiles, self.side = random.choice([1, 1, 2, 4]), 3 * processor.image_processor.size["height"]

    def draw(self, pictures: int) -> tuple[str, list[torch.Tensor]]:
        words = [self.words(4), *(part for _ in range(pictures) for part in ("<image>", self.words(3)))]
        sizes = [(self.random.randint(4, self.side), self.random.randint(4, self.side)) for _ in range(pictures)]
        noise = [torch.Generator().manual_seed(self.random.randrange(99)) for _ in sizes]
        images = [
            torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator)
            for size, generator in zip(sizes, noise, strict=True)
        ]
        return " ".join(words), images

    def words(self, most: int) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(0, most)))

    def process(self, prompts: list[tuple[str, list]], side: str = "left") -> dict[str, torch.Tensor]:
        texts, images = zip(*prompts, strict=True)
        self.processor.image_processor.max_patches = self.tiles
        batch = processed(self.processor, list(texts), [image for row in images for image in row], side)
        if self.fused and "pixel_values" in batch:
            batch["pixel_values"] = torch.cat([batch["pixel_values"], 0.5 * batch["pixel_values"] + 0.1], 1)
        return batch


def options_of(random: Random, rows: int) -> dict:
    """How answers are searched for."""
    sample = rows == 1 and random.random() < 0.4
    beams = 1 if sample else random.choice([1, 1, 2, 3])
    options = {"num_beams": beams, "do_sample": sample, "max_new_tokens": random.choice([1, 2, 6])}
    options["num_return_sequences"] = 2 if sample else random.randint(1, beams)
    options["eos_token_id"] = random.choice([[2], [2, 9, 11], [2, 8, 10, 15, 17]])
    if random.random() < 0.3:
        options["repetition_penalty"] = 1.7
    return options | {"pad_token_id": 3, "return_dict_in_generate": True, "output_logits": True}


def said(row: torch.Tensor, ends: list[int]) -> list[int]:
    """Tokens up to the first that ends the answer."""
    tokens = row.tolist()
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))]


@pytest.mark.parametrize("seed", range(24))
def test_a_combination_answers_as_each_prompt_alone(seed):
    random = Random(seed)
    encoder = random.choice(list(ENCODERS))
    family, projector = random.choice(list(LANGUAGE_MODELS)), random.choice(["mlp", "vss_l2", "fused_ldp"])
    model, processor = parts(family, projector, encoder)
    prompts = Prompts(random, processor, encoder == "fused")
    rows = random.randint(1, 3)
    begun = random.choice([0, 1, rows])  # rows of the prefix
    beginnings = [prompts.draw(random.randint(0, 2)) for _ in range(begun)]
    beginnings = [(f"<|user|> {text}", images) for text, images in beginnings]
    rests = [prompts.draw(random.choice([0, 0, 1, 2])) for _ in range(rows)]
    rests = [(f"{text}<|assistant|>", images) for text, images in rests]
    options = options_of(random, rows)
    sides, sizes = random.choices(["left", "right"], k=2), random.choices([None, 1, 2, 3, 5, 8], k=2)
    state = None
    if begun:
        state = model.prefix_state(**prompts.process(beginnings, sides[0]), prefill_chunk_size=sizes[0])
    inputs = prompts.process(rests, sides[1])
    torch.manual_seed(seed)
    together = model.generate(**inputs, prefix=state, prefill_chunk_size=sizes[1], **options)
    new = together.sequences[:, inputs["input_ids"].shape[1] :]
    for row, (text, images) in enumerate(rests):
        if begun:
            before, seen = beginnings[row % begun]
            text, images = f"{before} {text}", seen + images
        whole = prompts.process([(text, images)])
        torch.manual_seed(seed)
        alone = model.generate(**whole, use_cache=False, **options)
        each = slice(row * len(alone.sequences), (row + 1) * len(alone.sequences))
        answers, ends = alone.sequences[:, whole["input_ids"].shape[1] :], options["eos_token_id"]
        assert [said(answer, ends) for answer in new[each]] == [said(answer, ends) for answer in answers]
        width = len(alone.logits[0])
        assert_close("first logits", together.logits[0][row * width : (row + 1) * width], alone.logits[0].double())
