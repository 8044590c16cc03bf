# SPDX-License-Identifier: Apache-2.0
"""Mamba (arXiv:2312.00752): the language model."""

from vlmamba.models.mamba.modeling_mamba import MambaForCausalLM

__all__ = ["MambaForCausalLM"]
