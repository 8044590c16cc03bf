# SPDX-License-Identifier: Apache-2.0
"""Several vision models side by side, as Cobra's DINOv2 and SigLIP."""

from vlmamba.models.fused_vision.configuration_fused_vision import FusedVisionConfig
from vlmamba.models.fused_vision.modeling_fused_vision import FusedVisionModel

__all__ = ["FusedVisionConfig", "FusedVisionModel"]
