# SPDX-License-Identifier: Apache-2.0
"""VLMamba: a vision encoder, a connector and a Mamba language model that answer questions about images."""

from vlmamba.models.vlmamba.configuration_vlmamba import VLMambaConfig, VLMambaProjectorConfig
from vlmamba.models.vlmamba.image_processing_cobra import CobraImageProcessor
from vlmamba.models.vlmamba.image_processing_vlmamba import VLMambaImageProcessor
from vlmamba.models.vlmamba.modeling_vlmamba import (
    VLMambaForConditionalGeneration,
    VLMambaModel,
    VLMambaPreTrainedModel,
)
from vlmamba.models.vlmamba.presets import PRESETS
from vlmamba.models.vlmamba.processing_vlmamba import VLMambaProcessor

__all__ = [
    "PRESETS",
    "CobraImageProcessor",
    "VLMambaConfig",
    "VLMambaForConditionalGeneration",
    "VLMambaImageProcessor",
    "VLMambaModel",
    "VLMambaPreTrainedModel",
    "VLMambaProcessor",
    "VLMambaProjectorConfig",
]
