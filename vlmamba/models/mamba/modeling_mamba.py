# SPDX-License-Identifier: Apache-2.0
"""The Mamba language model: transformers' class, parameters, config and cache, on our kernel."""

import transformers

from vlmamba.layers.kernels import apply_kernels
from vlmamba.models.generation import StatefulGenerationMixin


class MambaForCausalLM(StatefulGenerationMixin, transformers.MambaForCausalLM):
    """`transformers.MambaForCausalLM` whose scans run on `vlmamba.ops`; loads the same checkpoints.

    A warm cache takes any number of tokens, padding may stand on either side, every projection is called as a module.
    `AutoModelForCausalLM` goes on giving transformers' own class: load with this one, or call `apply_kernels` after.

    Example:
        >>> model = vlmamba.MambaForCausalLM.from_pretrained(folder)
    """

    def __init__(self, config: transformers.MambaConfig):
        super().__init__(config)
        apply_kernels(self)
