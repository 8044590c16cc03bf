# SPDX-License-Identifier: Apache-2.0
"""VMamba: Visual State Space Model (arXiv:2401.10166)."""

from vlmamba.models.vmamba.configuration_vmamba import PRESETS, VMambaConfig
from vlmamba.models.vmamba.modeling_vmamba import (
    VMambaBackbone,
    VMambaForImageClassification,
    VMambaModel,
    VMambaPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "VMambaBackbone",
    "VMambaConfig",
    "VMambaForImageClassification",
    "VMambaModel",
    "VMambaPreTrainedModel",
]
