# SPDX-License-Identifier: Apache-2.0
"""LocalVMamba of LocalMamba (arXiv:2403.09338)."""

from vlmamba.models.localvmamba.configuration_localvmamba import PRESETS, LocalVMambaConfig
from vlmamba.models.localvmamba.modeling_localvmamba import (
    LocalVMambaBackbone,
    LocalVMambaForImageClassification,
    LocalVMambaModel,
    LocalVMambaPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "LocalVMambaBackbone",
    "LocalVMambaConfig",
    "LocalVMambaForImageClassification",
    "LocalVMambaModel",
    "LocalVMambaPreTrainedModel",
]
