# SPDX-License-Identifier: Apache-2.0
"""PlainMamba (arXiv:2403.17695)."""

from vlmamba.models.plainmamba.configuration_plainmamba import PRESETS, PlainMambaConfig
from vlmamba.models.plainmamba.modeling_plainmamba import (
    PlainMambaBackbone,
    PlainMambaForImageClassification,
    PlainMambaModel,
    PlainMambaPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "PlainMambaBackbone",
    "PlainMambaConfig",
    "PlainMambaForImageClassification",
    "PlainMambaModel",
    "PlainMambaPreTrainedModel",
]
