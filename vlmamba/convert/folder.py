# SPDX-License-Identifier: Apache-2.0
"""A checkpoint file to a folder that `from_pretrained` and pipelines take: weights, config, labels, image processor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import BitImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from vlmamba.convert.files import read_checkpoint
from vlmamba.convert.tokenizer import read_tokenizer
from vlmamba.convert.weights import converter_of, from_official
from vlmamba.models import ENCODERS

# how images are prepared where a family's converter says nothing else: as in most ImageNet recipes
PREPROCESSING = {"crop_pct": 0.875, "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
# size of the files that weights are written in: one at a time is copied
SHARD = "2GB"


def image_processor_of(family: str, config: PreTrainedConfig) -> BitImageProcessor:
    """The published preprocessing: the shorter side resized, the centre cropped, normed by ImageNet's statistics.

    Args:
        family: the encoder's.
        config: whose `image_size` images are cropped to.
    """
    chosen = PREPROCESSING | getattr(converter_of(family), "preprocessing", lambda config: {})(config)
    height, width = config.image_sides
    return BitImageProcessor(
        size={"shortest_edge": int(min(height, width) / chosen.pop("crop_pct"))},
        crop_size={"height": height, "width": width},
        resample=PILImageResampling.BICUBIC,
        **chosen,
    )


def convert_checkpoint(
    family: str,
    checkpoint: str | Path,
    folder: str | Path,
    arguments: dict[str, Any] | str | None = None,
    task: str | None = None,
    weights: str | None = None,
    vision: Sequence[str | Path] = (),
    tokenizer: str | Path | None = None,
) -> PreTrainedModel:
    """Read an official checkpoint and write a model folder.

    Args:
        family, arguments, task: as of `from_official`.
        checkpoint, weights: as of `read_checkpoint`.
        folder: to write; made if it is missing.
        vision: for cobra, files with timm's weights of the encoders, in any order; fetched where they are not given.
        tokenizer: for cobra, a tokenizer.json or a folder that has one; fetched when None.

    Returns:
        The model that was written.

    Raises:
        ValueError: a file, the family or its arguments are wrong, or the weights do not fit; nothing is written then.
    """
    converter = converter_of(family)
    chats = hasattr(converter, "processor_of")
    if not chats and (vision or tokenizer):
        raise ValueError(f"{'vision' if vision else 'tokenizer'} is given, but {family} checkpoints need none")
    state_dict = read_checkpoint(checkpoint, weights)
    words = read_tokenizer(tokenizer, converter.TOKENIZER) if chats else None
    for path in vision:
        state_dict |= converter.vision_names(read_checkpoint(path))
    model = from_official(family, state_dict, arguments, task, share_memory=True)
    if chats:
        processor = converter.processor_of(model.config, arguments, words)
        model.generation_config.update(
            eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, max_new_tokens=converter.MAX_NEW_TOKENS
        )
        processor.save_pretrained(folder)
    if family in ENCODERS:
        image_processor_of(family, model.config).save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size=SHARD)
    return model
