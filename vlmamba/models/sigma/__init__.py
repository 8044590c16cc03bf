# SPDX-License-Identifier: Apache-2.0
"""Sigma: Siamese Mamba Network for Multi-Modal Semantic Segmentation (arXiv:2404.04256)."""

from vlmamba.models.sigma.configuration_sigma import PRESETS, SigmaConfig
from vlmamba.models.sigma.modeling_sigma import SigmaForSemanticSegmentation, SigmaModel, SigmaPreTrainedModel

__all__ = ["PRESETS", "SigmaConfig", "SigmaForSemanticSegmentation", "SigmaModel", "SigmaPreTrainedModel"]
