# SPDX-License-Identifier: Apache-2.0
"""Prompts for the tiny VLM, and what it answers to them."""

import torch

NEW = 12

PROMPTS = {
    "one image": ("<|user|><image> what is this ?<|assistant|>", [1]),
    "two images": ("<|user|><image> is this left of <image> ?<|assistant|>", [2, 3]),
    "text only": ("<|user|> how many ?<|assistant|>", []),
    "two turns": (
        "<|user|><image> what ?<|assistant|> a dog .</s><|user|> how many things are there ?<|assistant|>",
        [4],
    ),
}


def picture(shade: int) -> torch.Tensor:
    """Noise of a size of its own, uint8 `[3, H, W]`."""
    generator = torch.Generator().manual_seed(shade)
    return torch.randint(0, 255, (3, 16 + shade, 20), dtype=torch.uint8, generator=generator)


def inputs_of(processor, *names: str, side: str = "left") -> dict[str, torch.Tensor]:
    """The model's inputs for a batch of `PROMPTS`, in float64."""
    texts = [PROMPTS[name][0] for name in names]
    return processed(processor, texts, [picture(shade) for name in names for shade in PROMPTS[name][1]], side)


def processed(processor, texts: list[str], images: list, side: str = "left") -> dict[str, torch.Tensor]:
    """The model's inputs for texts and images, in float64."""
    batch = processor(images=images or None, text=texts, padding=True, padding_side=side, return_tensors="pt")
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def generate(model, inputs: dict, **options) -> torch.Tensor:
    """The new tokens only; greedy unless `options` say otherwise."""
    out = model.generate(**inputs, **{"max_new_tokens": NEW, "do_sample": False, **options})
    return out[:, inputs["input_ids"].shape[1] :]
