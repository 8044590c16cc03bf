# SPDX-License-Identifier: Apache-2.0
"""What the package brings along: the small model that `vlmamba ask` uses when no other is named."""

from pathlib import Path

BUNDLED_MODEL = "emoji-tiny"


def bundled_model() -> Path:
    """The folder of the bundled model; an incomplete installation may lack it."""
    return Path(__file__).parent / BUNDLED_MODEL
