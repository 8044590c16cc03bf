# SPDX-License-Identifier: Apache-2.0
"""EfficientVMamba (arXiv:2403.09977)."""

from vlmamba.models.efficientvmamba.configuration_efficientvmamba import PRESETS, EfficientVMambaConfig
from vlmamba.models.efficientvmamba.modeling_efficientvmamba import (
    EfficientVMambaBackbone,
    EfficientVMambaForImageClassification,
    EfficientVMambaModel,
    EfficientVMambaPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "EfficientVMambaBackbone",
    "EfficientVMambaConfig",
    "EfficientVMambaForImageClassification",
    "EfficientVMambaModel",
    "EfficientVMambaPreTrainedModel",
]
