# SPDX-License-Identifier: Apache-2.0
"""LocalVim of LocalMamba (arXiv:2403.09338)."""

from vlmamba.models.localvim.configuration_localvim import PRESETS, LocalVimConfig
from vlmamba.models.localvim.modeling_localvim import (
    LocalVimBackbone,
    LocalVimForImageClassification,
    LocalVimModel,
    LocalVimPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "LocalVimBackbone",
    "LocalVimConfig",
    "LocalVimForImageClassification",
    "LocalVimModel",
    "LocalVimPreTrainedModel",
]
