# SPDX-License-Identifier: Apache-2.0
"""Official PlainMamba checkpoints (ChenhongyiYang/PlainMamba, an ImageClassifier of mmcls) -> our classifier."""

import re
from typing import Any

import torch

from vlmamba.models.official_names import matched
from vlmamba.models.plainmamba.configuration_plainmamba import PRESETS, PlainMambaConfig
from vlmamba.models.plainmamba.modeling_plainmamba import PlainMambaForImageClassification

MODELS = {"image-classification": PlainMambaForImageClassification}
_LAYER = r"^backbone\.layers\.(\d+)\."
# official key -> ours
KEYS = [
    (r"^backbone\.pos_embed$", "plainmamba.embeddings.position_embeddings"),
    (r"^backbone\.patch_embed\.projection\.", "plainmamba.embeddings.patch_embeddings."),
    (r"^backbone\.patch_embed\.stem\.", "plainmamba.embeddings.stem."),
    (_LAYER + r"norm\.", r"plainmamba.layers.\1.norm."),
    (_LAYER + r"dw\.0\.", r"plainmamba.convolutions.\1.conv."),
    (_LAYER + r"dw\.1\.", r"plainmamba.convolutions.\1.norm."),
    (_LAYER + r"mamba\.(in_proj|conv2d|x_proj|dt_proj|out_proj)\.", r"plainmamba.layers.\1.mixer.\2."),
    (_LAYER + r"mamba\.(A_log|D)$", r"plainmamba.layers.\1.mixer.\2"),
    (_LAYER + r"mamba\.direction_Bs$", r"plainmamba.layers.\1.mixer.move_embeddings"),
    (_LAYER + r"mamba\.gamma$", r"plainmamba.layers.\1.mixer.layer_scale"),
    (r"^backbone\.ln1\.", "plainmamba.norm."),
    (r"^head\.fc\.", "classifier."),
]
# of the layers that `out_indices` names: the classifier reads the last one, whichever these are
_OTHER_NORM = re.compile(r"^backbone\.norm_layer\d+\.")
_STEM_CONVOLUTION = re.compile(r"^backbone\.patch_embed\.convs\.(\d+)\.")
# modules of the stem's first convolution: itself, its norm and its activation
_STEM_OFFSET = 3
_MIXER = {
    "d_state": ("state_size", 16),
    "expand": ("expand", 2),
    "dt_rank": ("time_step_rank", "auto"),
    "conv_size": ("conv_kernel", 7),
    "conv_bias": ("conv_bias", True),
    "bias": ("projection_bias", False),
    "init_layer_scale": ("layer_scale_init_value", None),
}
# of the mixer's arguments those that do not change what a trained model computes
_WITHOUT_EFFECT = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "default_hw_shape", "d_model")


def _architecture(backbone: dict[str, Any]) -> dict[str, Any]:
    """Fields that a published architecture sets, whatever else is given, or that single arguments do."""
    arch = backbone.get("arch")
    if arch is not None:
        if arch not in PRESETS:
            raise ValueError(f"plainmamba: arch is {arch!r}, expected None or one of {', '.join(PRESETS)}")
        return {name: value for name, value in PRESETS[arch].items() if name != "drop_path_rate"}
    layer = backbone.get("layer_cfgs", {})
    if not isinstance(layer, dict):
        raise ValueError(f"plainmamba: layer_cfgs is a {type(layer).__name__}, expected one dict for all layers")
    mixer = layer.get("mamba_cfg", {})
    if unknown := mixer.keys() - _MIXER.keys() - set(_WITHOUT_EFFECT):
        raise ValueError(f"plainmamba: mamba_cfg has {', '.join(sorted(unknown))}, expected {', '.join(_MIXER)}")
    return {
        "hidden_size": backbone.get("embed_dims", 192),
        "num_hidden_layers": backbone.get("num_layers", 20),
        "patch_size": backbone.get("patch_size", 16),
        "num_stem_convolutions": backbone.get("num_convs_patch_embed", 1),
        "convolved_layers": list(backbone.get("layers_with_dwconv", [])),
        "norm_type": "rms_norm" if layer.get("use_rms_norm", False) else "layer_norm",
        **{ours: mixer.get(name, default) for name, (ours, default) in _MIXER.items()},
    }


def config_from_official(arguments: dict[str, Any]) -> PlainMambaConfig:
    """The config of an ImageClassifier: `backbone` has the arguments of `PlainMamba`, beside it stands `num_classes`.

    What is left out takes the official default.

    Raises:
        ValueError: an option that has no counterpart is set.
    """
    backbone = arguments.get("backbone", {})
    get = backbone.get
    norm = get("norm_cfg", {"type": "LN", "eps": 1e-6})
    if norm is None or norm.get("type") != "LN":
        raise ValueError(f"plainmamba: norm_cfg is {norm!r}, expected type 'LN'")
    architecture = _architecture(backbone)
    return PlainMambaConfig(
        **architecture,
        image_size=get("img_size", 224),
        num_channels=get("in_channels", 3),
        num_labels=arguments.get("num_classes", 1000),
        use_position_embeddings=get("with_pos_embed", True),
        interpolation=get("interpolate_mode", "bicubic"),
        use_final_norm=get("final_norm", True),
        final_norm_epsilon=norm.get("eps", 1e-5),
        dropout=get("drop_rate", 0.0),
        drop_path_rate=get("drop_path_rate", 0.0),
    )


def rename(state_dict: dict[str, torch.Tensor], config: PlainMambaConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names to ours; names that match nothing are kept, so that loading reports them."""
    renamed = {}
    for key, tensor in state_dict.items():
        if _OTHER_NORM.match(key):
            continue
        if match := _STEM_CONVOLUTION.match(key):
            key = f"plainmamba.embeddings.stem.{int(match[1]) + _STEM_OFFSET}.{key[match.end() :]}"
        key = matched(key, KEYS)
        renamed[key] = tensor
    return renamed
