# SPDX-License-Identifier: Apache-2.0
"""Train the bundled VLM on emoji scenes: encoder, connector and language model together.

    python -m training.train_vlm --recipe training/recipes/emoji_vlm.yaml

The encoder starts from stage 0 (`training.train_encoder`), the rest from scratch. Each example is a conversation of
several questions about one scene; the loss is on the answers. Run it again and it resumes; the output folder is
a complete model folder that `vlmamba ask --model` takes.
"""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer

from training.common import Trainer, parse_recipe, run, training_arguments
from training.data.emoji_scenes import EmojiScenes, load_drawings
from vlmamba.data import ChatCollator
from vlmamba.models.vim import VimForImageClassification
from vlmamba.models.vlmamba import (
    VLMambaConfig,
    VLMambaForConditionalGeneration,
    VLMambaImageProcessor,
    VLMambaProcessor,
)


class Conversations(Dataset):
    """Scenes as chat examples: the picture comes with the first question."""

    def __init__(self, scenes: EmojiScenes):
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, turns = self.scenes[index]
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": [{"type": "text", "text": turn.question}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        messages[0]["content"].insert(0, {"type": "image"})
        return {"messages": messages, "images": [scene.image]}


def build(recipe: dict[str, Any]) -> tuple[VLMambaForConditionalGeneration, VLMambaProcessor]:
    """The model, its encoder filled from stage 0, and the processor."""
    tokenizer = AutoTokenizer.from_pretrained(recipe["tokenizer"])
    encoder = VimForImageClassification.from_pretrained(recipe["encoder"])
    vision = {k: v for k, v in encoder.config.to_dict().items() if k not in ("id2label", "label2id")}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = VLMambaConfig(
        vision_config=vision,
        projector_config=recipe["model"]["projector"],
        text_config={
            "model_type": "mamba",
            "vocab_size": len(tokenizer),
            **tokens,
            **recipe["model"]["text"],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **tokens,
    )
    model = VLMambaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(encoder.vim.state_dict())
    model.generation_config.max_new_tokens = 64
    side = encoder.config.image_size
    processor = VLMambaProcessor(
        image_processor=VLMambaImageProcessor(size={"height": side, "width": side}),
        tokenizer=tokenizer,
        num_image_tokens=config.image_seq_length,
    )
    return model, processor


def main() -> None:
    recipe = parse_recipe(__doc__, "training/recipes/emoji_vlm.yaml")
    data = recipe["data"]
    arguments = training_arguments(recipe)
    torch.manual_seed(arguments.seed)
    model, processor = build(recipe)
    drawings = load_drawings(Path(data["folder"]) / "drawings", data["vendors"])
    size, turns = processor.image_processor.size["height"], data["turns"]
    length = arguments.max_steps * arguments.per_device_train_batch_size
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Conversations(EmojiScenes(drawings, data["seed"], size, length, turns)),
        eval_dataset=Conversations(EmojiScenes(drawings, data["seed"] + 1, size, data["test_scenes"], turns)),
        data_collator=ChatCollator(processor),
        processing_class=processor,
    )
    run(trainer, recipe)


if __name__ == "__main__":
    main()
