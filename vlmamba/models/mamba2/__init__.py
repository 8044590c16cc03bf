# SPDX-License-Identifier: Apache-2.0
"""Mamba-2 (arXiv:2405.21060): the language model."""

from vlmamba.models.mamba2.modeling_mamba2 import Mamba2ForCausalLM

__all__ = ["Mamba2ForCausalLM"]
