# SPDX-License-Identifier: Apache-2.0
"""Official Mamba checkpoints (state-spaces/mamba, class MambaLMHeadModel) -> MambaForCausalLM."""

from typing import Any

import torch
from transformers import MambaConfig

from vlmamba.models.mamba.modeling_mamba import MambaForCausalLM

# GPT-NeoX's tokenizer, which all published checkpoints use: its <|endoftext|> is token 0
VOCABULARY = 50277


def config_from_official(arguments: dict[str, Any]) -> MambaConfig:
    """The config of a `MambaConfig(**arguments)` of mamba_ssm.

    Raises:
        ValueError: an option that transformers' Mamba has no place for is set.
    """
    get = arguments.get
    ssm = get("ssm_cfg") or {}
    if not get("rms_norm", True):
        raise ValueError("mamba: rms_norm is False, expected True (LayerNorm is not supported)")
    if get("d_intermediate", 0) or get("attn_layer_idx") or ssm.get("layer", "Mamba1") != "Mamba1":
        raise ValueError("mamba: d_intermediate, attn_layer_idx and ssm_cfg.layer other than Mamba1 are not supported")
    multiple, words = get("pad_vocab_size_multiple", 8), get("vocab_size", VOCABULARY)
    end = 0 if words == VOCABULARY else None
    return MambaConfig(
        hidden_size=get("d_model", 2560),
        num_hidden_layers=get("n_layer", 64),
        vocab_size=-(-words // multiple) * multiple,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        state_size=ssm.get("d_state", 16),
        conv_kernel=ssm.get("d_conv", 4),
        expand=ssm.get("expand", 2),
        time_step_rank=ssm.get("dt_rank", "auto"),
        use_bias=ssm.get("bias", False),
        use_conv_bias=ssm.get("conv_bias", True),
        residual_in_fp32=get("residual_in_fp32", True),
        tie_word_embeddings=get("tie_embeddings", True),
    )


def from_official(state_dict: dict[str, torch.Tensor], arguments: dict[str, Any]):
    """An uninitialised model of the right config, and the renamed weights."""
    config = config_from_official(arguments)
    renamed = {key.replace("backbone.embedding.", "backbone.embeddings."): v for key, v in state_dict.items()}
    if config.tie_word_embeddings and "backbone.embeddings.weight" in renamed:
        renamed.setdefault("lm_head.weight", renamed["backbone.embeddings.weight"])
    model = MambaForCausalLM(config)
    words = arguments.get("vocab_size", VOCABULARY)
    if words < config.vocab_size:
        # rows that only pad the embedding are never generated
        model.generation_config.suppress_tokens = list(range(words, config.vocab_size))
    return model, renamed
