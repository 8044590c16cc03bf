# SPDX-License-Identifier: Apache-2.0
"""Official Cobra checkpoints (h-zhao1997/cobra, class CobraVLM) -> VLMambaForConditionalGeneration."""

from textwrap import shorten
from typing import Any

import timm
import torch
from timm.models import load_state_dict_from_hf
from transformers import MambaConfig, PreTrainedTokenizerBase

from vlmamba.models.modeling_utils import MAMBA_SSM_VOCABULARY, mamba_ssm_names, mamba_ssm_sizes
from vlmamba.models.vlmamba.chat_templates import COBRA_BASE_CHAT_TEMPLATE, COBRA_CHAT_TEMPLATE
from vlmamba.models.vlmamba.configuration_vlmamba import VLMambaConfig
from vlmamba.models.vlmamba.image_processing_cobra import CobraImageProcessor
from vlmamba.models.vlmamba.modeling_vlmamba import VLMambaForConditionalGeneration
from vlmamba.models.vlmamba.processing_vlmamba import IMAGE_TOKEN, VLMambaProcessor
from vlmamba.models.vlmamba.projector import MultiModalProjector

MODELS = {"image-text-to-text": VLMambaForConditionalGeneration}
# has the tokenizer.json of every language model
TOKENIZER = "EleutherAI/gpt-neox-20b"
END = "<|endoftext|>"
# of the official scripts/generate.py
MAX_NEW_TOKENS = 512

# the official ModelConfigs (cobra/conf/models.py): the first, and what the others differ in
_COBRA_3B = {
    "arch_specifier": "no-align+fused-gelu-mlp",
    "vision_backbone_id": "dinosiglip-vit-so-384px",
    "llm_backbone_id": "mamba-2.8b-zephyr",
    "image_resize_strategy": "resize-naive",
}
PRESETS = {
    "cobra-3b": {},
    "cobra-one-epoch-3b": {},
    "cobra-base-3b": {"llm_backbone_id": "mamba-2.8b-slimpj"},
    "cobra-siglip-3b": {"vision_backbone_id": "siglip-vit-so400m-384px", "arch_specifier": "no-align+gelu-mlp"},
    "cobra-ldpnet-3b": {"arch_specifier": "no-align+fused-ldpnet"},
}

_DINO, _SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384.webli"
_CLIP = "vit_large_patch14_clip_336.openai"
# vision_backbone_id -> pixels, and timm's names of the encoders (cobra/models/backbones/vision)
VISION_BACKBONES = {
    "clip-vit-b": (224, ["vit_base_patch16_clip_224.openai"]),
    "clip-vit-l": (224, ["vit_large_patch14_clip_224.openai"]),
    "clip-vit-l-336px": (336, [_CLIP]),
    "siglip-vit-b16-224px": (224, ["vit_base_patch16_siglip_224.webli"]),
    "siglip-vit-b16-256px": (256, ["vit_base_patch16_siglip_256.webli"]),
    "siglip-vit-b16-384px": (384, ["vit_base_patch16_siglip_384.webli"]),
    "siglip-vit-so400m": (224, ["vit_so400m_patch14_siglip_224.webli"]),
    "siglip-vit-so400m-384px": (384, [_SIGLIP]),
    "dinov2-vit-l": (224, [_DINO]),
    "in1k-vit-l": (224, ["vit_large_patch16_224.augreg_in21k_ft_in1k"]),
    "dinoclip-vit-l-336px": (336, [_DINO, _CLIP]),
    "dinosiglip-vit-so-384px": (384, [_DINO, _SIGLIP]),
}
# architecture -> with the name of its pretrained weights
_PRETRAINED = {name.partition(".")[0]: name for _, names in VISION_BACKBONES.values() for name in names}
# llm_backbone_id -> width and layers (cobra/models/backbones/llm/mamba.py)
LANGUAGE_MODELS = {
    "mamba-2.8b-zephyr": (2560, 64),
    "mamba-2.8b-slimpj": (2560, 64),
    "mamba-2.8b": (2560, 64),
    "mamba-1.4b": (2048, 48),
}
# what arch_specifier ends in -> ours; the first that fits
PROJECTORS = {
    "fused-gelu-mlp": "fused_mlp",
    "gelu-mlp": "mlp",
    "fused-ldpnet": "fused_ldp",
    "ldpnet": "ldp",
    "linear": "linear",
}
# what of the arguments is read, and what it must be; `vision` has numbers
_KINDS = {
    **dict.fromkeys(("model_id", *_COBRA_3B), (str, "a name")),
    **dict.fromkeys(("d_model", "n_layer", "vocab"), (int, "a whole number")),
    "vision": (dict, "a dict"),
}
# so much is quoted of what timm says
_QUOTED = 300
# official layers of a projector -> ours
_LAYERS = {"projector": "linear", "0": "linear_1", "2": "linear_2", "4": "linear_3", "4.peg.0": "position"}
_PROJECTOR, _TOWER = "model.multi_modal_projector.", "model.vision_tower.encoders."
# a tensor that an encoder of timm's has -> the official name of the encoder
_SIGNS = {"reg_token": "dino_featurizer", "attn_pool.latent": "siglip_featurizer", "norm_pre.weight": "clip_featurizer"}


def config_from_official(arguments: dict[str, Any]) -> VLMambaConfig:
    """The config of a CobraVLM.

    Args:
        arguments: fields of the official ModelConfig, or a run's whole `config.json`, which has them under "model";
            what is left out is as in `cobra+3b`, or as in the model that `model_id` names. Sizes may differ from those
            of the parts that are named: `d_model`, `n_layer` and `vocab` are the language model's; a dict `vision`
            has `size` in pixels and DINOv2's (`d`) and SigLIP's (`s`) widths `dd`, `sd`, numbers of layers `depth_d`,
            `depth_s`, and of heads `hd`, `hs`.

    Raises:
        ValueError: a part is unknown; the message lists those that are known.
    """
    words = official_words(arguments)
    width, layers = _known(words, "llm_backbone_id", LANGUAGE_MODELS)
    vocabulary = words.get("vocab", MAMBA_SSM_VOCABULARY)
    sizes = {"d_model": words.get("d_model", width), "n_layer": words.get("n_layer", layers), "vocab_size": vocabulary}
    text = MambaConfig(**mamba_ssm_sizes("cobra", sizes, "Mamba1"))
    specifier = words["arch_specifier"]
    projector = next((kind for end, kind in PROJECTORS.items() if specifier.endswith(end)), None)
    if projector is None:
        raise ValueError(f"cobra: arch_specifier is {specifier!r}, expected one that ends in {', '.join(PROJECTORS)}")
    return VLMambaConfig(
        vision_config={"model_type": "fused_vision", "encoders": _encoders(words)},
        projector_config={"projector_type": projector},
        text_config=text,
        # the first row that only fills the embeddings up to a round number, or one that they do not have
        image_token_id=vocabulary,
        **{name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


def official_words(arguments: dict[str, Any] | str | None) -> dict[str, Any]:
    """Fields of the official ModelConfig, with what was left out.

    Args:
        arguments: as of `config_from_official`; or the name of a published model, as "cobra-3b" or "cobra+3b".

    Raises:
        ValueError: there is no published model of that name, or a field is of another kind.
    """
    if isinstance(arguments, str):
        name, words = arguments.replace("+", "-"), {}
        if name not in PRESETS:
            raise ValueError(f"from_official: cobra has no preset {arguments!r}; expected one of {', '.join(PRESETS)}")
    else:
        words = (arguments or {}).get("model", arguments or {})
        if not isinstance(words, dict):
            raise ValueError(f"cobra: model is {words!r}, expected a dict: the official ModelConfig")
        for field, (kind, expected) in _KINDS.items():
            if not isinstance(words.get(field, kind()), kind):
                raise ValueError(f"cobra: {field} is {words[field]!r}, expected {expected}")
        name = words.get("model_id", "cobra-3b").replace("+", "-")
    return {**_COBRA_3B, **PRESETS.get(name, {}), **words}


def published(state_dict: dict[str, torch.Tensor], preset: str | None) -> VLMambaConfig:
    """The config of the published model of that name, or of the first whose projector the weights are.

    Raises:
        ValueError: there is none.
    """
    if preset is not None:
        return config_from_official(official_words(preset))
    for name in PRESETS:
        config = config_from_official(official_words(name))
        with torch.device("meta"):
            expected = MultiModalProjector(config).state_dict(prefix=_PROJECTOR)
        found = {key: tensor for key, tensor in rename(state_dict, config).items() if key.startswith(_PROJECTOR)}
        if _shapes(found) == _shapes(expected):
            return config
    raise ValueError(
        f"from_official('cobra'): the projector is that of none of {', '.join(PRESETS)}; give the official ModelConfig "
        "as arguments"
    )


def rename(
    state_dict: dict[str, torch.Tensor], config: VLMambaConfig, task: str | None = None
) -> dict[str, torch.Tensor]:
    """Official names to ours; of the whole model's state dict, or of the published files' parts put together."""
    renamed, language = {}, {}
    for key, tensor in state_dict.items():
        part, _, rest = key.removeprefix("model.").partition(".")
        if part == "llm_backbone":
            language[rest.removeprefix("llm.")] = tensor
        elif part == "projector":
            layer, _, last = rest.rpartition(".")
            layer = layer.removeprefix("projector.")
            renamed[f"{_PROJECTOR}connector.{_LAYERS.get(layer, layer)}.{last}"] = tensor
        elif part == "vision_backbone":
            featurizer, _, rest = rest.partition(".")
            renamed[f"{_TOWER}{_index(featurizer, config)}.timm_model.{rest}"] = tensor
        else:
            renamed[key] = tensor
    for key, tensor in mamba_ssm_names(language, config, task).items():
        renamed[key.replace("backbone.", "model.language_model.", 1)] = tensor
    return renamed


def vision_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of one encoder under timm's names -> under the official names of a whole model's state dict."""
    featurizer = next((name for sign, name in _SIGNS.items() if sign in weights), "featurizer")
    return {f"vision_backbone.{featurizer}.{key}": tensor for key, tensor in weights.items()}


def complete(renamed: dict[str, torch.Tensor], config: VLMambaConfig) -> dict[str, torch.Tensor]:
    """Renamed weights with those of the encoders, which were not trained and are in no published file.

    What timm has is fetched as in the official code; what is there for another image size, or with a head, is fitted.

    Raises:
        ValueError: they cannot be fetched; the message says which files to fetch. Or what is there does not fit.
    """
    missing, encoders = [], config.vision_config.encoders
    given = {key.removeprefix(_TOWER).partition(".")[0] for key in renamed if key.startswith(_TOWER)}
    if strange := sorted(given - set(map(str, range(len(encoders))))):
        raise ValueError(
            f"cobra: there are weights of {', '.join(strange)}, but the encoders of the model are "
            f"{' and '.join(encoder.architecture for encoder in encoders)}"
        )
    for index, encoder in enumerate(encoders):
        prefix = f"{_TOWER}{index}.timm_model."
        found = {key.removeprefix(prefix): tensor for key, tensor in renamed.items() if key.startswith(prefix)}
        with torch.device("meta"):
            expected = timm.create_model(encoder.architecture, num_classes=0, **encoder.model_args).state_dict()
        if _shapes(found) == _shapes(expected):
            continue
        name = _PRETRAINED.get(encoder.architecture, encoder.architecture)
        try:
            found = found or load_state_dict_from_hf(f"timm/{name}")
        except Exception:  # the hub raises many kinds
            missing.append(f"timm/{name}")
            continue
        renamed = {key: tensor for key, tensor in renamed.items() if not key.startswith(prefix)}
        renamed |= {f"{prefix}{key}": tensor for key, tensor in _fitted(found, name, encoder.model_args).items()}
    if missing:
        raise ValueError(
            f"cobra: the checkpoint has no vision tower, and it cannot be fetched: fetch the weights of "
            f"{' and of '.join(missing)} from huggingface.co and give each file with --vision FILE, or its tensors as "
            "vision_backbone.* of the state dict"
        )
    return renamed


def _fitted(weights: dict[str, torch.Tensor], name: str, sizes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of timm's model of that name, without its head and with positions for other sizes of images."""
    headless = {key: tensor for key, tensor in weights.items() if not key.startswith("head.")}
    overlay = {"state_dict": headless}
    try:
        tower = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **sizes)
    except Exception as error:  # so does timm
        reason = shorten(str(error), _QUOTED, placeholder=" ...")
        raise ValueError(f"cobra: the weights for the encoder {name} do not fit it: {reason}") from error
    return tower.state_dict()


def processor_of(
    config: VLMambaConfig, arguments: dict[str, Any] | str | None, tokenizer: PreTrainedTokenizerBase
) -> VLMambaProcessor:
    """Images and texts as the official code prepares them.

    Args:
        config: of the model.
        arguments: as of `official_words`: they say how images are resized and what prompts look like.
        tokenizer: GPT-NeoX's; gets the token `<image>`.

    Raises:
        ValueError: the tokenizer is another.
    """
    words = official_words(arguments)
    if END not in tokenizer.get_vocab():
        raise ValueError(f"tokenizer: it has no token {END}, expected that of {TOKENIZER}")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = tokenizer.unk_token = END
    tokenizer.padding_side = "left"
    if (image := tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) != config.image_token_id:
        raise ValueError(
            f"tokenizer: it has {image} tokens before {IMAGE_TOKEN}, the language model {config.image_token_id}; "
            f"expected that of {TOKENIZER}"
        )
    height, width = config.vision_config.image_size
    strategy = words.get("vision", {}).get("strategy", words["image_resize_strategy"])
    names = [encoder.architecture for encoder in config.vision_config.encoders]
    known = [timm.get_pretrained_cfg(_PRETRAINED.get(name, name)) for name in names]
    return VLMambaProcessor(
        CobraImageProcessor(
            size={"height": height, "width": width},
            resize_strategy=strategy,
            image_mean=[value for found in known for value in found.mean],
            image_std=[value for found in known for value in found.std],
            # the official code does without timm's margin for these
            crop_pct=[
                1.0 if "siglip" in found.architecture or "in1k" in found.tag else found.crop_pct for found in known
            ],
        ),
        tokenizer,
        chat_template=COBRA_CHAT_TEMPLATE if words["llm_backbone_id"].endswith("zephyr") else COBRA_BASE_CHAT_TEMPLATE,
        num_image_tokens=config.image_seq_length,
    )


def _index(featurizer: str, config: VLMambaConfig) -> int | str:
    """Which encoder an official featurizer is: the only one, or the one whose name has the same word in it."""
    word = featurizer.removesuffix("featurizer").removesuffix("_")
    found = [i for i, encoder in enumerate(config.vision_config.encoders) if word in encoder.architecture]
    return found[0] if len(found) == 1 else featurizer


def _encoders(words: dict[str, Any]) -> list[dict[str, Any]]:
    size, names = _known(words, "vision_backbone_id", VISION_BACKBONES)
    sizes = words.get("vision", {})
    encoders = []
    for name in names:
        kind = "d" if name == _DINO else "s"
        own = {"embed_dim": f"{kind}d", "depth": f"depth_{kind}", "num_heads": f"h{kind}"}
        arguments = {"img_size": sizes.get("size", size)}
        arguments |= {ours: sizes[theirs] for ours, theirs in own.items() if theirs in sizes}
        # the official code gives OpenAI's weights their activation back, but not beside DINOv2
        if name.endswith(".openai") and len(names) == 1:
            arguments["act_layer"] = "quick_gelu"
        timm_model = {"architecture": name.partition(".")[0], "model_args": arguments, "do_pooling": False}
        encoders.append({"model_type": "timm_wrapper", **timm_model})
    return encoders


def _known(words: dict[str, Any], name: str, table: dict[str, Any]) -> Any:
    if words[name] not in table:
        raise ValueError(f"cobra: {name} is {words[name]!r}, expected one of {', '.join(table)}")
    return table[words[name]]


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in weights.items()}
