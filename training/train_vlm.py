# SPDX-License-Identifier: Apache-2.0
"""Train the bundled VLM on emoji scenes: encoder, connector and language model together.

    python -m training.train_vlm --recipe training/recipes/emoji_vlm.yaml

The encoder starts from stage 0 (`training.train_encoder`), the connector from scratch, the language model from scratch
or from the one of the model folder that the recipe names under `language`. Each example is a conversation of several
questions about one scene; the loss is on the answers. With `alignment` in the recipe, a second loss draws the features
of every patch to the language model's embedding of what the patch shows: a language model that can copy names from its
context then finds them in the image. Everything is trained, or what the recipe's `stage` says: `align` the connector,
`finetune` connector and language model (`VLMambaForConditionalGeneration.set_stage`).
Run it again and it resumes; the output folder is a complete model folder that `vlmamba ask --model` takes.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.common import Trainer, parse_recipe, run, training_arguments
from training.data.emoji_scenes import EmojiScenes, load_drawings
from training.patches import PatchNames, patch_loss
from vlmamba.data import ChatCollator
from vlmamba.models.vim import VimForImageClassification
from vlmamba.models.vlmamba import (
    VLMambaConfig,
    VLMambaForConditionalGeneration,
    VLMambaImageProcessor,
    VLMambaProcessor,
)

TEMPERATURE = 0.05


class Conversations(Dataset):
    """Scenes as chat examples, with the name of what every patch shows: the picture comes with the first question."""

    def __init__(self, scenes: EmojiScenes, patches: PatchNames):
        self.scenes, self.patches = scenes, patches

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, turns = self.scenes[index]
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": [{"type": "text", "text": turn.question}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        messages[0]["content"].insert(0, {"type": "image"})
        return {"messages": messages, "images": [scene.image], "patch_names": self.patches(scene)}


class SceneCollator(ChatCollator):
    """`ChatCollator` that keeps the patches' names, `[B, patches]`."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(examples)
        batch["patch_names"] = torch.stack([example["patch_names"] for example in examples])
        return batch


def word_distance(features: torch.Tensor, words: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How far features `[patches, D]` are from the words `[names, D]` that their labels number; -100 does not count."""
    cosines = F.normalize(features, dim=-1) @ F.normalize(words, dim=-1).t()
    known = labels >= 0
    error = (features[known] - words[labels[known]]).square().mean() / words.square().mean()
    return patch_loss(cosines / TEMPERATURE, labels) + error


class AlignedTrainer(Trainer):
    """Adds `alignment` times the distance of patch features from the embeddings of what the patches show.

    A name's embedding is the mean of its tokens'; the background's is that of `<image>`. The distance is the
    cross-entropy of the cosines with all names, over a fixed temperature, plus the squared error over the embeddings'
    mean square: features get the direction and the size of words.
    """

    def __init__(self, alignment: float, names: list[str], tokenizer: PreTrainedTokenizerBase, **options: Any):
        super().__init__(**options)
        self.alignment = alignment
        tokens = [[tokenizer.convert_tokens_to_ids("<image>")]]
        tokens += [tokenizer(f"A {name}", add_special_tokens=False)["input_ids"][1:] for name in names]
        self.name_tokens = [torch.tensor(ids) for ids in tokens]

    def compute_loss(self, model, inputs, return_outputs=False, **options):
        patch_names = inputs.pop("patch_names")
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        if self.alignment:
            table = self.accelerator.unwrap_model(model).get_input_embeddings().weight.detach().float()
            words = torch.stack([table[ids.to(table.device)].mean(0) for ids in self.name_tokens])
            loss = loss + self.alignment * word_distance(
                outputs.image_hidden_states.float(), words, patch_names.flatten()
            )
        return (loss, outputs) if return_outputs else loss


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
    if recipe.get("language"):
        taught = VLMambaForConditionalGeneration.from_pretrained(recipe["language"], dtype=torch.float32)
        model.model.language_model.load_state_dict(taught.model.language_model.state_dict())
    if recipe.get("stage"):
        model.set_stage(recipe["stage"])
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
    names = sorted({drawing.name for drawing in drawings})
    patches = PatchNames(names, model.config.vision_config)
    trainer = AlignedTrainer(
        recipe.get("alignment", 0.0),
        names,
        processor.tokenizer,
        model=model,
        args=arguments,
        train_dataset=Conversations(EmojiScenes(drawings, data["seed"], size, length, turns), patches),
        eval_dataset=Conversations(EmojiScenes(drawings, data["seed"] + 1, size, data["test_scenes"], turns), patches),
        data_collator=SceneCollator(processor),
        processing_class=processor,
    )
    run(trainer, recipe)


if __name__ == "__main__":
    main()
