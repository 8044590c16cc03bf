# SPDX-License-Identifier: Apache-2.0
"""A tiny model that has learnt to name the colour of a picture, in a folder."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.models.tiny import tiny_tokenizer
from vlmamba import VLMambaConfig, VLMambaForConditionalGeneration, VLMambaImageProcessor, VLMambaProcessor
from vlmamba.data import ChatCollator

WORDS = ["the", "picture", "is", "red", "blue", "black", "what", "colour", "?", "and", "hello"]
COLOURS = ["red", "blue"]
QUESTION = "what colour is the picture ?"


def tiny_config(vocab_size: int) -> VLMambaConfig:
    """32 wide, 16 placeholders per image."""
    return VLMambaConfig(
        vision_config={
            "model_type": "vim",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        text_config={
            "model_type": "mamba",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "vocab_size": vocab_size,
        },
    )


def example(colour: str) -> dict:
    """A question about a picture of one colour, with its answer."""
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    answer = {"role": "assistant", "content": f"the picture is {colour}"}
    return {
        "messages": [{"role": "user", "content": parts}, answer],
        "images": [Image.new("RGB", (32, 32), colour)],
    }


def learn(model: VLMambaForConditionalGeneration, processor: VLMambaProcessor, steps: int = 40) -> None:
    """Until the two examples are known by heart."""
    batch = ChatCollator(processor)([example(colour) for colour in COLOURS])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.05, f"the tiny model did not learn: loss {loss:.3f}"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A whole model folder; tests that damage it work on a copy."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_tokenizer(WORDS)
    config = tiny_config(len(tokenizer))
    image_processor = VLMambaImageProcessor(size={"height": 32, "width": 32})
    processor = VLMambaProcessor(image_processor, tokenizer, num_image_tokens=config.image_seq_length)
    model = VLMambaForConditionalGeneration(config)
    learn(model, processor)
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def red(tmp_path) -> str:
    """Path of a red picture."""
    path = tmp_path / "red.png"
    Image.new("RGB", (40, 40), "red").save(path)
    return str(path)


@pytest.fixture
def blue(tmp_path) -> str:
    """Path of a blue picture."""
    path = tmp_path / "blue.png"
    Image.new("RGB", (40, 40), "blue").save(path)
    return str(path)
