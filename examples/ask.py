# SPDX-License-Identifier: Apache-2.0
"""Ask the bundled model about a picture, in the way of any Hugging Face VLM.

python examples/ask.py examples/kitchen.png "What is to the left of the pizza?"
"""

import sys

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmamba.assets import bundled_model
from vlmamba.data import load_image


def main(path: str, question: str) -> None:
    folder = bundled_model()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=load_image(path), text=text, return_tensors="pt")
    answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    print(processor.decode(answer, skip_special_tokens=True).strip())


if __name__ == "__main__":
    main(*sys.argv[1:])
