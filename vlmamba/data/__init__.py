# SPDX-License-Identifier: Apache-2.0
"""Pictures from disk, and collators that turn examples into model inputs."""

from vlmamba.data.collators import ChatCollator, answer_labels
from vlmamba.data.images import ImageError, load_image
from vlmamba.data.rationale_collator import RationaleCollator

__all__ = ["ChatCollator", "ImageError", "RationaleCollator", "answer_labels", "load_image"]
