# SPDX-License-Identifier: Apache-2.0
"""A tiny random language model of every transformers family that has Mamba layers."""

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 40
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
WIDTH = {"hidden_size": 16, "intermediate_size": 32}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
HYBRID = {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]}
# Mamba-2 with heads of 8, two groups, a state of 6
MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 6,
    "mamba_chunk_size": 8,
}

# family -> prefix of transformers' class names, and what the config differs in
CONFIGS: dict[str, tuple[str, dict]] = {
    "mamba": ("Mamba", {"hidden_size": 16, "num_hidden_layers": 3, "state_size": 4}),
    "falcon_mamba": ("FalconMamba", {"hidden_size": 16, "num_hidden_layers": 3, "state_size": 4}),
    "jamba": (
        "Jamba",
        {
            **WIDTH,
            **HEADS,
            "num_hidden_layers": 3,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 3,
        },
    ),
    "zamba": (
        "Zamba",
        {
            **WIDTH,
            **HYBRID,
            "attention_hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "n_mamba_heads": 2,
            "mamba_d_state": 4,
            "mamba_dt_rank": 3,
        },
    ),
    "mamba2": (
        "Mamba2",
        {
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 2,
            "state_size": 6,
            "chunk_size": 8,
        },
    ),
    "bamba": ("Bamba", {**WIDTH, **HEADS, **MAMBA2, "num_hidden_layers": 3, "attn_layer_indices": [1]}),
    "zamba2": (
        "Zamba2",
        {
            **WIDTH,
            **HYBRID,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "n_mamba_heads": 4,
            "mamba_headdim": 8,
            "mamba_ngroups": 2,
            "mamba_d_state": 6,
            "chunk_size": 8,
            "time_step_min": 1e-9,  # transformers' steps forget this limit
            "num_mem_blocks": 1,
        },
    ),
    "nemotron_h": (
        "NemotronH",
        {
            **WIDTH,
            **HEADS,
            "layers_block_type": ["mamba", "attention", "mamba", "mlp"],
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 6,
            "chunk_size": 8,
            "time_step_min": 1e-9,
        },
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **WIDTH,
            **HEADS,
            **MAMBA2,
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
            "shared_intermediate_size": 32,
            "num_local_experts": 2,
            "num_experts_per_tok": 2,
        },
    ),
    "falcon_h1": (
        "FalconH1",
        {
            **WIDTH,
            **HEADS,
            **MAMBA2,
            "num_hidden_layers": 2,
            "mamba_d_ssm": 32,
            "ssm_in_multiplier": 1.3,
            "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
        },
    ),
}


def tiny_language_model(family: str, **changes) -> PreTrainedModel:
    """transformers' own class, in evaluation mode; weights large enough that answers differ."""
    torch.manual_seed(0)
    prefix, sizes = CONFIGS[family]
    config = getattr(transformers, f"{prefix}Config")(**{**TOKENS, **sizes, **changes})
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
