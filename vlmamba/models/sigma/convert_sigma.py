# SPDX-License-Identifier: Apache-2.0
"""Official Sigma checkpoints (zifuwan/Sigma, class EncoderDecoder) -> our models."""

from typing import Any

import torch

from vlmamba.models.official_maps import KEYS as ENCODER_KEYS
from vlmamba.models.official_maps import rename_maps
from vlmamba.models.official_names import Target
from vlmamba.models.sigma.configuration_sigma import ENCODER, PRESETS, SigmaConfig
from vlmamba.models.sigma.modeling_sigma import SigmaForSemanticSegmentation

MODELS = {"semantic-segmentation": SigmaForSemanticSegmentation}

_ENCODER = "backbone.vssm."
_SCANS = r"(x_proj_weight|dt_projs_weight|dt_projs_bias|A_logs|Ds)$"
# the modality that an official name of CroMB speaks of -> what ours ends in
_SECOND = {"1": "", "2": "_x", "rgb": "", "e": "_x"}
# official keys of the blocks -> ours
CROSS_KEYS: list[tuple[str, Target]] = [
    (r"\bop\.in_proj\.", "in_proj."),
    (r"\bop\.in_proj_modalx\.", "in_proj_x."),
    (r"\bop\.conv2d\.", "conv2d."),
    (r"\bop\.out_proj_(rgb|e)\.", lambda match: f"out_proj{_SECOND[match[1]]}."),
    (r"\bop\.CMA_ssm\.out_norm_([12])\.", lambda match: f"norm{_SECOND[match[1]]}."),
    (r"\bop\.CMA_ssm\.x_proj_([12])\.", lambda match: f"scans{_SECOND[match[1]]}.x_proj."),
    (r"\bop\.CMA_ssm\.dt_proj_([12])\.", lambda match: f"scans{_SECOND[match[1]]}.dt_projs.0."),
    (r"\bop\.CMA_ssm\.(A_log|D)_([12])$", lambda match: f"scans{_SECOND[match[2]]}.{match[1]}"),
]
CONCAT_KEYS: list[tuple[str, Target]] = [
    (r"\bop\.(in_proj|conv2d)\.", r"\1."),
    (r"\bop\.(in_proj|conv2d)_modalx\.", r"\1_x."),
    (r"\bop\.out_norm1\.", "norm."),
    (r"\bop\.out_norm2\.", "norm_x."),
    (r"\bop\.fc1\.0\.", "gate.reduce."),
    (r"\bop\.fc1\.2\.", "gate.expand."),
    (r"\bop\.fc2\.0\.", "gate_x.reduce."),
    (r"\bop\.fc2\.2\.", "gate_x.expand."),
    (r"\bop\.out_proj\.", "out_proj."),
    (r"\bop\." + _SCANS, r"scans.\1"),
]
BLOCK_KEYS: list[tuple[str, Target]] = [
    (r"\bscale1$", "scale.weight"),
    (r"\bscale2$", "channel_scale.weight"),
    (r"\bnorm1\.", "norm."),
    (r"\bnorm2\.", "channel_norm."),
    (r"\bop\.(in_proj|conv2d|out_norm|out_proj)\.", r"mixer.\1."),
    (r"\bop\." + _SCANS, r"mixer.scans.\1"),
    (r"\bconv_blk\.cab\.0\.", "channel_attention.conv1."),
    (r"\bconv_blk\.cab\.2\.", "channel_attention.conv2."),
    (r"\bconv_blk\.cab\.3\.fc\.0\.", "channel_attention.gate.reduce."),
    (r"\bconv_blk\.cab\.3\.fc\.2\.", "channel_attention.gate.expand."),
]
_DECODER_KEYS: list[tuple[str, Target]] = [
    (r"^layers_up\.0\.", "decoder.expand."),
    (r"^norm_up\.", "decoder.norm."),
    (r"^up\.linear1\.", "decoder.final.projections.0."),
    (r"^up\.linear2\.", "decoder.final.projections.1."),
    (r"^up\.norm\.", "decoder.final.norm."),
    (r"^output\.", "classifier."),
]
_UPSAMPLE_KEYS: list[tuple[str, Target]] = [(r"^linear\.", "projections.0.")]


def config_from_official(arguments: dict[str, Any]) -> SigmaConfig:
    """The config of an `EncoderDecoder` of these sizes; what is left out takes the default of Sigma-T.

    Raises:
        ValueError: an option that has no counterpart is set.
    """
    get = arguments.get
    for name, expected in (("mlp_ratio", 0.0), ("downsample_version", "v1"), ("deep_supervision", False)):
        if get(name, expected) != expected:
            raise ValueError(f"sigma: {name} is {get(name)!r}, expected {expected!r}")
    depths, widths = list(get("depths", ENCODER["depths"])), get("dims", 96)
    decoder_depths = list(get("decoder_depths", [4] * len(depths)))
    rate = get("decoder_drop_path_rate", 0.1)
    # the official rates count the blocks of the coarsest map, which has none
    share = (sum(decoder_depths[:-1]) - 1) / max(sum(decoder_depths) - 1, 1)
    encoder = {
        **ENCODER,
        "depths": depths,
        "hidden_sizes": [widths * 2**i for i in range(len(depths))] if isinstance(widths, int) else list(widths),
        "num_channels": get("in_chans", 3),
        "state_size": get("encoder_d_state", 16),
        "expand": get("ssm_ratio", 2.0),
        "drop_path_rate": get("drop_path_rate", ENCODER["drop_path_rate"]),
        "out_features": [f"stage{i + 1}" for i in range(len(depths))],
    }
    return SigmaConfig(
        backbone_config={"model_type": "vmamba", **encoder},
        num_labels=get("num_classes", 40),
        fusion_state_size=get("fusion_d_state", 4),
        decoder_state_size=get("decoder_d_state", 4),
        expand=get("ssm_ratio", 2.0),
        decoder_depths=decoder_depths[:-1],
        compression=get("channel_attn_compress_ratio", 3),
        reduction=get("channel_attn_squeeze_factor", 30),
        decoder_drop_path_rate=rate * share,
    )


def published(state_dict: dict[str, torch.Tensor], preset: str | None) -> SigmaConfig:
    """The config of the published model of that name, or of the one whose encoder has the weights' width and depth.

    Raises:
        ValueError: there is none.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"from_official: sigma has no preset {preset!r}; expected one of {', '.join(PRESETS)}")
    keys = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    head, stem = keys.get("decode_head.output.weight"), keys.get(f"{_ENCODER}patch_embed.0.weight")
    classes = 40 if head is None else len(head)
    depth = sum(key.startswith(f"{_ENCODER}layers.2.blocks.") and key.endswith(".op.Ds") for key in keys)
    for name in PRESETS if preset is None else [preset]:
        config = SigmaConfig(**PRESETS[name], num_labels=classes)
        encoder = config.backbone_config
        fits = stem is not None and (encoder.hidden_sizes[0], encoder.depths[2]) == (len(stem), depth)
        if preset is not None or fits:
            return config
    raise ValueError(
        f"from_official('sigma'): the encoder is that of none of {', '.join(PRESETS)}; give the sizes as arguments"
    )


def rename_block(
    state_dict: dict[str, torch.Tensor], patterns: list[tuple[str, Target]], prefix: str = ""
) -> dict[str, torch.Tensor]:
    """A part's official names and shapes to ours, with `prefix`; names that match nothing are kept.

    Args:
        patterns: `CROSS_KEYS`, `CONCAT_KEYS`, `BLOCK_KEYS`, ...
    """
    renamed = rename_maps(state_dict, patterns, "")
    for key, tensor in renamed.items():
        if patterns is CROSS_KEYS and key.endswith((".A_log", ".D")):
            renamed[key] = tensor.unsqueeze(0)  # one direction
        elif ".gate." in key or key == "classifier.weight":
            renamed[key] = tensor.flatten(1)  # officially convolutions of side 1, in the decoder
    return {prefix + key: tensor for key, tensor in renamed.items()}


def rename(state_dict: dict[str, torch.Tensor], config: SigmaConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names and shapes to ours; names that match nothing are kept, so that loading reports them."""
    parts: dict[str, tuple[list, dict]] = {}
    for key, tensor in state_dict.items():
        place, patterns, rest = _place(key.removeprefix("module."), len(config.decoder_depths))
        parts.setdefault(place, (patterns, {}))[1][rest] = tensor
    renamed = {}
    for place, (patterns, weights) in parts.items():
        renamed |= rename_block(weights, patterns, place)
    return renamed


def _place(key: str, stages: int) -> tuple[str, list[tuple[str, Target]], str]:
    """Where of our model a key belongs, the patterns there, and what is left of it."""
    if key.startswith(_ENCODER):
        return "sigma.backbone.", ENCODER_KEYS, key.removeprefix(_ENCODER)
    words = key.split(".")
    numbered = len(words) > 4 and words[2].isdecimal()
    if numbered and words[:2] == ["backbone", "cross_mamba"]:
        return f"sigma.fusions.{words[2]}.cross.", CROSS_KEYS, ".".join(words[3:])
    if numbered and words[:2] == ["backbone", "channel_attn_mamba"]:
        return f"sigma.fusions.{words[2]}.concat.", CONCAT_KEYS, ".".join(words[3:])
    if numbered and words[:2] == ["decode_head", "layers_up"] and words[2] != "0":
        stage = stages - int(words[2])  # officially from coarse to fine
        if words[3] == "blocks":
            return f"decoder.stages.{stage}.{words[4]}.", BLOCK_KEYS, ".".join(words[5:])
        if words[3] == "upsample":
            return f"decoder.upsamples.{stage - 1}.", _UPSAMPLE_KEYS, ".".join(words[4:])
    return "", _DECODER_KEYS, key.removeprefix("decode_head.")
