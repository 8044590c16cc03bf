# SPDX-License-Identifier: Apache-2.0
"""What every model of this library inherits, and what the language models' converters share."""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import MambaModel, PreTrainedConfig, PreTrainedModel

from vlmamba.models.remote_code import PackagedCode

# what transformers' Mamba models call their states: `cache` since 5.24, `cache_params` before
CACHE = "cache" if "cache" in inspect.signature(MambaModel.forward).parameters else "cache_params"

# GPT-NeoX's tokenizer, which all published checkpoints of mamba_ssm use: its <|endoftext|> is token 0
MAMBA_SSM_VOCABULARY = 50277


class KernelPreTrainedModel(PackagedCode, PreTrainedModel):
    """A `PreTrainedModel` whose scans run on `vlmamba.ops`: its state matrices stay in float32."""

    supports_gradient_checkpointing = True
    # of every name that has it in it
    _keep_in_fp32_modules_strict = ["A_log"]

    def post_init(self) -> None:
        """Also of transformers' language models, whose state matrices are made in the dtype of all their weights."""
        for name, parameter in self.named_parameters():
            if "A_log" in name and parameter.dtype.itemsize < 4:
                parameter.data = parameter.data.float()
        super().post_init()

    @torch.no_grad()
    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers passes modules without parameters of their own over in models from outside its package,
        # as such code may ignore what is loaded already; ours initialises through `transformers.initialization`
        super()._initialize_weights(module, is_custom_code=False)


def mamba_ssm_sizes(family: str, arguments: dict[str, Any], layer: str) -> dict[str, Any]:
    """What a config of ours takes from `MambaConfig(**arguments)` of mamba_ssm, whichever its mixer.

    Raises:
        ValueError: an option that transformers' Mamba models have no place for is set.
    """
    get = arguments.get
    if not get("rms_norm", True):
        raise ValueError(f"{family}: rms_norm is False, expected True (LayerNorm is not supported)")
    if get("d_intermediate", 0) or get("attn_layer_idx") or (get("ssm_cfg") or {}).get("layer", layer) != layer:
        raise ValueError(
            f"{family}: d_intermediate, attn_layer_idx and ssm_cfg.layer other than {layer} are not supported"
        )
    multiple, words = get("pad_vocab_size_multiple", 8), get("vocab_size", MAMBA_SSM_VOCABULARY)
    end = 0 if words == MAMBA_SSM_VOCABULARY else None
    return {
        "hidden_size": get("d_model", 2560),
        "num_hidden_layers": get("n_layer", 64),
        "vocab_size": -(-words // multiple) * multiple,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "residual_in_fp32": get("residual_in_fp32", True),
        "tie_word_embeddings": get("tie_embeddings", True),
    }


def mamba_ssm_names(
    state_dict: dict[str, torch.Tensor], config: PreTrainedConfig, task: str
) -> dict[str, torch.Tensor]:
    """mamba_ssm's weights under transformers' names."""
    renamed = {key.replace("backbone.embedding.", "backbone.embeddings."): v for key, v in state_dict.items()}
    if config.tie_word_embeddings and "backbone.embeddings.weight" in renamed:
        renamed.setdefault("lm_head.weight", renamed["backbone.embeddings.weight"])
    return renamed


def suppress_padding(model: PreTrainedModel, arguments: dict[str, Any]) -> None:
    """Never generate the rows that only fill mamba_ssm's embedding up to a round size."""
    words = arguments.get("vocab_size", MAMBA_SSM_VOCABULARY)
    if words < model.config.vocab_size:
        model.generation_config.suppress_tokens = list(range(words, model.config.vocab_size))
