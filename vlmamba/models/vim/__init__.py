# SPDX-License-Identifier: Apache-2.0
"""Vim: Vision Mamba (arXiv:2401.09417)."""

from vlmamba.models.vim.configuration_vim import VimConfig
from vlmamba.models.vim.modeling_vim import VimForImageClassification, VimModel, VimPreTrainedModel

__all__ = ["VimConfig", "VimForImageClassification", "VimModel", "VimPreTrainedModel"]
