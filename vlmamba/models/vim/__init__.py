# SPDX-License-Identifier: Apache-2.0
"""Vim: Vision Mamba (arXiv:2401.09417)."""

from vlmamba.models.vim.configuration_vim import PRESETS, VimConfig
from vlmamba.models.vim.modeling_vim import VimBackbone, VimForImageClassification, VimModel, VimPreTrainedModel

__all__ = ["PRESETS", "VimBackbone", "VimConfig", "VimForImageClassification", "VimModel", "VimPreTrainedModel"]
