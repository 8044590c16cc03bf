# SPDX-License-Identifier: Apache-2.0
"""Official Mamba-2 checkpoints (state-spaces/mamba, class MambaLMHeadModel) -> Mamba2ForCausalLM."""

from typing import Any

from transformers import Mamba2Config

from vlmamba.models.mamba2.modeling_mamba2 import Mamba2ForCausalLM
from vlmamba.models.modeling_utils import mamba_ssm_names, mamba_ssm_sizes, suppress_padding

MODELS = {"text-generation": Mamba2ForCausalLM}
rename = mamba_ssm_names


def config_from_official(arguments: dict[str, Any]) -> Mamba2Config:
    """The config of a `MambaConfig(**arguments)` of mamba_ssm whose `ssm_cfg` says Mamba2.

    Raises:
        ValueError: an option that transformers' Mamba-2 has no place for is set.
    """
    ssm = arguments.get("ssm_cfg") or {}
    sizes = mamba_ssm_sizes("mamba2", arguments, "Mamba2")
    expand, head_dim = ssm.get("expand", 2), ssm.get("headdim", 64)
    inner = expand * sizes["hidden_size"]
    for name, only in (("d_ssm", inner), ("D_has_hdim", False), ("rmsnorm", True), ("norm_before_gate", False)):
        if ssm.get(name) not in (None, only):
            raise ValueError(f"mamba2: ssm_cfg.{name} is {ssm[name]}, expected {only} (others are not supported)")
    return Mamba2Config(
        **sizes,
        state_size=ssm.get("d_state", 128),
        conv_kernel=ssm.get("d_conv", 4),
        expand=expand,
        head_dim=head_dim,
        num_heads=inner // head_dim,
        n_groups=ssm.get("ngroups", 1),
        use_bias=ssm.get("bias", False),
        use_conv_bias=ssm.get("conv_bias", True),
        time_step_limit=tuple(map(float, ssm.get("dt_limit", (0.0, "inf")))),
        chunk_size=ssm.get("chunk_size", 256),
    )


def finish(model: Mamba2ForCausalLM, arguments: dict[str, Any]) -> None:
    """What the weights do not hold: rows that only pad the embedding are never generated."""
    suppress_padding(model, arguments)
