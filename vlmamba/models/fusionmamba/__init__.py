# SPDX-License-Identifier: Apache-2.0
"""FusionMamba (Xie et al., arXiv:2404.09498)."""

from vlmamba.models.fusionmamba.configuration_fusionmamba import PRESETS, FusionMambaConfig
from vlmamba.models.fusionmamba.modeling_fusionmamba import FusionMambaForImageFusion, FusionMambaPreTrainedModel

__all__ = ["PRESETS", "FusionMambaConfig", "FusionMambaForImageFusion", "FusionMambaPreTrainedModel"]
