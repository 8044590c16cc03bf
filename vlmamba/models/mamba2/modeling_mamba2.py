# SPDX-License-Identifier: Apache-2.0
"""The Mamba-2 language model: transformers' class, parameters, config and cache, on our kernel."""

import transformers

from vlmamba.layers.kernels import apply_kernels
from vlmamba.models.generation import StatefulGenerationMixin


class Mamba2ForCausalLM(StatefulGenerationMixin, transformers.Mamba2ForCausalLM):
    """`transformers.Mamba2ForCausalLM` whose scans run on `vlmamba.ops`; loads the same checkpoints.

    A warm cache takes any number of tokens, padding may stand on either side, every projection is called as a module.
    `AutoModelForCausalLM` goes on giving transformers' own class: load with this one, or call `apply_kernels` after.

    Example:
        >>> model = vlmamba.Mamba2ForCausalLM.from_pretrained(folder)
    """

    def __init__(self, config: transformers.Mamba2Config):
        super().__init__(config)
        apply_kernels(self)
