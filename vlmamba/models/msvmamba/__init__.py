# SPDX-License-Identifier: Apache-2.0
"""MSVMamba: Multi-Scale VMamba (arXiv:2405.14174)."""

from vlmamba.models.msvmamba.configuration_msvmamba import PRESETS, MSVMambaConfig
from vlmamba.models.msvmamba.modeling_msvmamba import (
    MSVMambaBackbone,
    MSVMambaForImageClassification,
    MSVMambaModel,
    MSVMambaPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "MSVMambaBackbone",
    "MSVMambaConfig",
    "MSVMambaForImageClassification",
    "MSVMambaModel",
    "MSVMambaPreTrainedModel",
]
