# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints in, models of this library out."""

from vlmamba.convert.files import read_checkpoint
from vlmamba.convert.folder import convert_checkpoint, image_processor_of
from vlmamba.convert.labels import label_names
from vlmamba.convert.weights import from_official, list_families, list_presets

__all__ = [
    "convert_checkpoint",
    "from_official",
    "image_processor_of",
    "label_names",
    "list_families",
    "list_presets",
    "read_checkpoint",
]
