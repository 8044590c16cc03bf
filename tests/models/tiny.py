# SPDX-License-Identifier: Apache-2.0
"""A VLM of a few thousand random parameters, with a real tokenizer and processor, in float64."""

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlmamba import VLMambaConfig, VLMambaForConditionalGeneration, VLMambaImageProcessor, VLMambaProcessor

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<|user|>", "<|assistant|>"]
WORDS = [
    "what",
    "is",
    "this",
    "a",
    "dog",
    "cat",
    "how",
    "many",
    "things",
    "are",
    "there",
    "left",
    "of",
    "?",
    ".",
]


def tiny_tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=SPECIAL[4:],
        padding_side="left",
    )


TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
LANGUAGE_MODELS = {
    "mamba": {},
    "falcon_mamba": {},
    "mamba2": {"num_heads": 6, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
}


def tiny_text_config(family: str = "mamba") -> dict:
    """The language model."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "vocab_size": len(SPECIAL + WORDS), "state_size": 4}
    return {"model_type": family, **sizes, "initializer_range": 0.5, **TOKENS, **LANGUAGE_MODELS[family]}


def tiny_config(projector: str = "vss_l2", scan: str = "cross_scan", **changes) -> VLMambaConfig:
    """Images of 16 pixels are 4 tokens."""
    vision = {
        "model_type": "vim",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    parts = {
        "vision_config": {**vision, "state_size": 4},
        "projector_config": {"projector_type": projector, "scan": scan, "state_size": 4},
        "text_config": tiny_text_config(),
    }
    return VLMambaConfig(**{**parts, "image_token_id": 4, **TOKENS, **changes})


def tiny_model(**options) -> VLMambaForConditionalGeneration:
    """In evaluation mode; weights large enough that answers differ."""
    torch.manual_seed(1)
    model = VLMambaForConditionalGeneration(tiny_config(**options)).double().eval()
    # greedy decoding of a random model should not stop at once
    model.generation_config.suppress_tokens = [0, 1, 2, 3, 4, 5, 6]
    return model


def tiny_processor() -> VLMambaProcessor:
    """For images of 16 pixels."""
    return VLMambaProcessor(
        image_processor=VLMambaImageProcessor(size={"height": 16, "width": 16}),
        tokenizer=tiny_tokenizer(),
        num_image_tokens=4,
    )
