# SPDX-License-Identifier: Apache-2.0
"""What every model of this library inherits."""

import torch
from torch import nn
from transformers import PreTrainedModel


class KernelPreTrainedModel(PreTrainedModel):
    """A `PreTrainedModel` whose scans run on `vlmamba.ops`: its state matrices stay in float32."""

    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = ["A_log", "other_A_log"]

    @torch.no_grad()
    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers passes modules without parameters of their own over in models from outside its package,
        # as such code may ignore what is loaded already; ours initialises through `transformers.initialization`
        super()._initialize_weights(module, is_custom_code=False)
