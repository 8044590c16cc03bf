# SPDX-License-Identifier: Apache-2.0
"""Mamba-R: Vision Mamba with registers (arXiv:2405.14858)."""

from vlmamba.models.mambar.configuration_mambar import PRESETS, MambaRConfig
from vlmamba.models.mambar.modeling_mambar import (
    MambaRBackbone,
    MambaRForImageClassification,
    MambaRModel,
    MambaRPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "MambaRBackbone",
    "MambaRConfig",
    "MambaRForImageClassification",
    "MambaRModel",
    "MambaRPreTrainedModel",
]
