# SPDX-License-Identifier: Apache-2.0
"""Mamba-ND (arXiv:2402.05892), its two-dimensional encoder."""

from vlmamba.models.mamband.configuration_mamband import PRESETS, MambaNDConfig
from vlmamba.models.mamband.modeling_mamband import (
    MambaNDBackbone,
    MambaNDForImageClassification,
    MambaNDModel,
    MambaNDPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "MambaNDBackbone",
    "MambaNDConfig",
    "MambaNDForImageClassification",
    "MambaNDModel",
    "MambaNDPreTrainedModel",
]
