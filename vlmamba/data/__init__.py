# SPDX-License-Identifier: Apache-2.0
"""Collators that turn examples into model inputs."""

from vlmamba.data.collators import ChatCollator, answer_labels

__all__ = ["ChatCollator", "answer_labels"]
