# SPDX-License-Identifier: Apache-2.0
"""Official Mamba checkpoints (state-spaces/mamba, class MambaLMHeadModel) -> MambaForCausalLM."""

from typing import Any

import torch
from transformers import MambaConfig

from vlmamba.models.mamba.modeling_mamba import MambaForCausalLM
from vlmamba.models.modeling_utils import mamba_ssm_sizes, mamba_ssm_weights


def config_from_official(arguments: dict[str, Any]) -> MambaConfig:
    """The config of a `MambaConfig(**arguments)` of mamba_ssm.

    Raises:
        ValueError: an option that transformers' Mamba has no place for is set.
    """
    ssm = arguments.get("ssm_cfg") or {}
    return MambaConfig(
        **mamba_ssm_sizes("mamba", arguments, "Mamba1"),
        state_size=ssm.get("d_state", 16),
        conv_kernel=ssm.get("d_conv", 4),
        expand=ssm.get("expand", 2),
        time_step_rank=ssm.get("dt_rank", "auto"),
        use_bias=ssm.get("bias", False),
        use_conv_bias=ssm.get("conv_bias", True),
    )


def from_official(state_dict: dict[str, torch.Tensor], arguments: dict[str, Any]):
    """An uninitialised model of the right config, and the renamed weights."""
    model = MambaForCausalLM(config_from_official(arguments))
    return model, mamba_ssm_weights(model, state_dict, arguments)
