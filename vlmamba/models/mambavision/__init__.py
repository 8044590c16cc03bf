# SPDX-License-Identifier: Apache-2.0
"""MambaVision: stages that convolve, scan and attend (arXiv:2407.08083)."""

from vlmamba.models.mambavision.configuration_mambavision import PRESETS, MambaVisionConfig
from vlmamba.models.mambavision.modeling_mambavision import (
    MambaVisionBackbone,
    MambaVisionForImageClassification,
    MambaVisionModel,
    MambaVisionPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "MambaVisionBackbone",
    "MambaVisionConfig",
    "MambaVisionForImageClassification",
    "MambaVisionModel",
    "MambaVisionPreTrainedModel",
]
