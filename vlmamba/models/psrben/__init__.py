# SPDX-License-Identifier: Apache-2.0
"""The pansharpening FusionMamba (arXiv:2404.07932), by the name of its code's owner as another model has its own."""

from vlmamba.models.psrben.configuration_psrben import PSRBenConfig
from vlmamba.models.psrben.modeling_psrben import PSRBenForImageFusion, PSRBenPreTrainedModel

__all__ = ["PSRBenConfig", "PSRBenForImageFusion", "PSRBenPreTrainedModel"]
