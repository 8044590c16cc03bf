# SPDX-License-Identifier: Apache-2.0
"""A checkpoint file to a folder that `from_pretrained` and pipelines take: weights, config, labels, image processor."""

from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import BitImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from vlmamba.convert.files import read_checkpoint
from vlmamba.convert.weights import from_official
from vlmamba.models import ENCODERS

# how images are prepared where a family's converter says nothing else: as in most ImageNet recipes
PREPROCESSING = {"crop_pct": 0.875, "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}


def image_processor_of(family: str, config: PreTrainedConfig) -> BitImageProcessor:
    """The published preprocessing: the shorter side resized, the centre cropped, normed by ImageNet's statistics.

    Args:
        family: the encoder's.
        config: whose `image_size` images are cropped to.
    """
    converter = import_module(f"vlmamba.models.{family}.convert_{family}")
    chosen = PREPROCESSING | getattr(converter, "preprocessing", lambda config: {})(config)
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
) -> PreTrainedModel:
    """Read an official checkpoint and write a model folder.

    Args:
        family, arguments, task: as of `from_official`.
        checkpoint, weights: as of `read_checkpoint`.
        folder: to write; made if it is missing.

    Returns:
        The model that was written.

    Raises:
        ValueError: the file, the family or its arguments are wrong, or the weights do not fit; nothing is written then.
    """
    model = from_official(family, read_checkpoint(checkpoint, weights), arguments, task)
    if family in ENCODERS:
        image_processor_of(family, model.config).save_pretrained(folder)
    model.save_pretrained(folder)
    return model
