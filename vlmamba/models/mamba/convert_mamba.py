# SPDX-License-Identifier: Apache-2.0
"""Official Mamba checkpoints (state-spaces/mamba, class MambaLMHeadModel) -> MambaForCausalLM."""

from typing import Any

from transformers import MambaConfig

from vlmamba.models.mamba.modeling_mamba import MambaForCausalLM
from vlmamba.models.modeling_utils import mamba_ssm_names, mamba_ssm_sizes, suppress_padding

MODELS = {"text-generation": MambaForCausalLM}
rename = mamba_ssm_names


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


def finish(model: MambaForCausalLM, arguments: dict[str, Any]) -> None:
    """What the weights do not hold: rows that only pad the embedding are never generated."""
    suppress_padding(model, arguments)
