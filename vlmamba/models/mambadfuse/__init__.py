# SPDX-License-Identifier: Apache-2.0
"""MambaDFuse: fusion of two grey images (arXiv:2404.08406)."""

from vlmamba.models.mambadfuse.configuration_mambadfuse import MambaDFuseConfig
from vlmamba.models.mambadfuse.modeling_mambadfuse import MambaDFuseForImageFusion, MambaDFusePreTrainedModel

__all__ = ["MambaDFuseConfig", "MambaDFuseForImageFusion", "MambaDFusePreTrainedModel"]
