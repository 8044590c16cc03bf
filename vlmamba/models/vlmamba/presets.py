# SPDX-License-Identifier: Apache-2.0
"""Named architectures: what a `VLMambaConfig` of each differs in from its defaults."""

from collections.abc import Iterable
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig

# GPT-NeoX's tokenizer has 50,277 tokens, the checkpoints' embeddings a few rows more; the first of them is the image's
_IMAGE_TOKEN = 50277
_ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}

# of state-spaces/mamba-<size>, and of state-spaces/mamba2-<size>: width and layers
_MAMBA_SIZES = {"130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1.4b": (2048, 48), "2.8b": (2560, 64)}
_MAMBA2_SIZES = {"130m": (768, 24), "370m": (1024, 48), "780m": (1536, 48), "1.3b": (2048, 48), "2.7b": (2560, 64)}

# google/siglip-so400m-patch14-384 and openai/clip-vit-large-patch14-336
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
# the same weights as timm has them, with which Cobra was trained
_TIMM_SIGLIP = {
    "model_type": "timm_wrapper",
    "architecture": "vit_so400m_patch14_siglip_384",
    "model_args": {"img_size": 384},
    "do_pooling": False,
}


def _mamba(size: str) -> dict[str, Any]:
    width, layers = _MAMBA_SIZES[size]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "vocab_size": 50280}
    return {"model_type": "mamba", **sizes, "residual_in_fp32": True, "tie_word_embeddings": True, **_ENDS}


def _mamba2(size: str) -> dict[str, Any]:
    width, layers = _MAMBA2_SIZES[size]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "vocab_size": 50288, "n_groups": 1, "state_size": 128}
    heads = {"head_dim": 64, "num_heads": width // 32}
    return {"model_type": "mamba2", **sizes, **heads, "residual_in_fp32": True, "tie_word_embeddings": True, **_ENDS}


def _vl_mamba(text: dict[str, Any], vision: dict[str, Any] = _SIGLIP) -> dict[str, Any]:
    """The paper does not say which layer it reads; LLaVA, which it follows, reads the last but one."""
    return {
        "vision_config": vision,
        "vision_feature_layer": -2,
        "projector_config": {"projector_type": "vss_l2", "scan": "bidirectional"},
        "text_config": text,
        "image_token_id": _IMAGE_TOKEN,
        **_ENDS,
    }


def _cobra(projector: str = "fused_mlp", **vision: Any) -> dict[str, Any]:
    """DINOv2 and SigLIP are what a `FusedVisionConfig` has by default."""
    return {
        "vision_config": {"model_type": "fused_vision", **vision},
        "projector_config": {"projector_type": projector},
        "text_config": _mamba("2.8b"),
        "image_token_id": _IMAGE_TOKEN,
        **_ENDS,
    }


_TINY_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_TINY = {
    "vision_config": {
        "model_type": "vim",
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "image_size": 128,
        "state_size": 8,
        "class_token": "none",
        "pooling": "none",
    },
    "projector_config": {"projector_type": "vss_l2", "scan": "cross_scan", "state_size": 8},
    "text_config": {
        "model_type": "mamba",
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "vocab_size": 1600,
        "initializer_range": 0.02,
        "rescale_prenorm_residual": True,
        **_TINY_ENDS,
    },
    "image_token_id": 4,
    **_TINY_ENDS,
}

# `vl-mamba-*`: VL-Mamba (arXiv:2403.13600): SigLIP, VSS-L2 with the bidirectional scan; its final model is 2.8b (with
#   mamba-2.8b-slimpj; that from the Pile has the same shapes), its ablations have 1.4b, and CLIP, here at LLaVA-1.5's
#   336 pixels. The smaller Mamba models, and `vl-mamba2-*` with Mamba-2, are the same around other language models.
# `cobra-*`: Cobra (arXiv:2403.14520) and what its authors' configs list. `cobra-base-3b` has the language model that is
#   not tuned for chats, `cobra-one-epoch-3b` half the training: the same architecture.
# `vlmamba-tiny`: the model in the package.
PRESETS: dict[str, dict[str, Any]] = {
    **{f"vl-mamba-{size}": _vl_mamba(_mamba(size)) for size in _MAMBA_SIZES},
    "vl-mamba-clip-2.8b": _vl_mamba(_mamba("2.8b"), _CLIP),
    **{f"vl-mamba2-{size}": _vl_mamba(_mamba2(size)) for size in _MAMBA2_SIZES},
    "cobra-3b": _cobra(),
    "cobra-one-epoch-3b": _cobra(),
    "cobra-base-3b": _cobra(),
    "cobra-siglip-3b": _cobra("mlp", encoders=[_TIMM_SIGLIP]),
    "cobra-ldpnet-3b": _cobra("fused_ldp"),
    "vlmamba-tiny": _TINY,
}


def preset_arguments(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `VLMambaConfig` for a preset with changes.

    A dict changes those fields of a part that it names, or, with another `model_type`, takes the part's place. Another
    encoder's output is read, unless a layer is named too: which of its layers are like the preset's is not known.

    Raises:
        ValueError: an unknown name; the message has the nearest and all there are.
    """
    if name not in PRESETS:
        near = get_close_matches(str(name), PRESETS, n=1)
        hint = f" (nearest: {near[0]!r})" if near else ""
        raise ValueError(f"from_preset: unknown preset {name!r}{hint}; expected one of {', '.join(PRESETS)}")
    arguments = deepcopy(PRESETS[name])
    for field, value in changes.items():
        part = arguments.get(field)
        if isinstance(part, dict) and isinstance(value, dict):
            kind = part.get("model_type")
            value = {**part, **value} if value.get("model_type", kind) == kind else value
        arguments[field] = value
    if _kind(arguments["vision_config"]) != PRESETS[name]["vision_config"]["model_type"]:
        arguments["vision_feature_layer"] = changes.get("vision_feature_layer", -1)
    return arguments


def _kind(part: PreTrainedConfig | dict[str, Any] | None) -> str | None:
    return part.get("model_type") if isinstance(part, dict) else getattr(part, "model_type", None)


def check_fields(name: str, given: Iterable[str], config: type[PreTrainedConfig]) -> None:
    """Configs keep whatever they are given; a change of a field that is none would change nothing.

    Raises:
        ValueError: the class `config`, of the part `name`, has no such field; the message has the nearest.
    """
    fields = {**config.__dataclass_fields__, **config.attribute_map}
    for field in given:
        if field not in fields and not hasattr(config, field):
            near = get_close_matches(field, fields, n=1)
            hint = f" (nearest: {near[0]!r})" if near else ""
            raise ValueError(f"from_preset: {name} has no field {field!r}{hint}")
