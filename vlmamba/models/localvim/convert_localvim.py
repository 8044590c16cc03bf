# SPDX-License-Identifier: Apache-2.0
"""Official LocalVim checkpoints (hunto/LocalMamba, class VisionMamba) -> LocalVimForImageClassification."""

from typing import Any

import torch

from vlmamba.models.local_scans import directions_from_official
from vlmamba.models.localvim.configuration_localvim import LocalVimConfig
from vlmamba.models.localvim.modeling_localvim import LocalVimForImageClassification
from vlmamba.models.official_names import matched
from vlmamba.models.rotary import rotary_from_official, without_rotary_tables

MODELS = {"image-classification": LocalVimForImageClassification}
_MIXER = r"^layers\.(\d+)\.mixer\."
# official key -> ours; a number at the end is that of the direction
KEYS = [
    (r"^patch_embed\.proj\.", "localvim.embeddings.patch_embeddings."),
    (r"^pos_embed$", "localvim.embeddings.position_embeddings"),
    (r"^cls_token$", "localvim.embeddings.class_tokens"),
    (r"^norm_f\.", "localvim.norm."),
    (r"^head\.", "classifier."),
    (r"^layers\.(\d+)\.norm\.", r"localvim.layers.\1.norm."),
    (_MIXER + r"(in_proj|out_proj)\.", r"localvim.layers.\1.mixer.\2."),
    (_MIXER + r"(conv1d|x_proj|dt_proj)_(\d+)\.", r"localvim.layers.\1.mixer.directions.\3.\2."),
    (_MIXER + r"(A_log|D)_(\d+)$", r"localvim.layers.\1.mixer.directions.\3.\2"),
    (_MIXER + r"attn\.norm\.", r"localvim.layers.\1.mixer.merge.gate.norm."),
    (_MIXER + r"attn\.global_reduce\.", r"localvim.layers.\1.mixer.merge.gate.reduce."),
    (_MIXER + r"attn\.channel_select\.", r"localvim.layers.\1.mixer.merge.gate.expand."),
    (_MIXER + r"multi_scan\.weights$", r"localvim.layers.\1.mixer.merge.weights"),
]
_POOLING = {"none": "last", "mean": "mean", "all": "none"}
_SSM = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "dt_rank": "time_step_rank"}
# of the mixer's arguments those that do not change what a trained model computes
_WITHOUT_EFFECT = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"}


def config_from_official(arguments: dict[str, Any]) -> LocalVimConfig:
    """The config of a `VisionMamba(**arguments)`; arguments left out take the official defaults.

    Raises:
        ValueError: an option that no published LocalVim uses is set.
    """
    get = arguments.get
    pooling, ssm, depth = get("final_pool_type", "none"), get("ssm_cfg") or {}, get("depth", 24)
    if pooling not in _POOLING:
        raise ValueError(f"localvim: final_pool_type is {pooling!r}, expected one of {', '.join(_POOLING)}")
    if unknown := sorted(ssm.keys() - _SSM.keys() - _WITHOUT_EFFECT):
        raise ValueError(f"localvim: ssm_cfg has {', '.join(unknown)}, expected only {', '.join(_SSM)}")
    class_token = get("if_cls_token", False)
    if bool(class_token) != bool(get("use_middle_cls_token", False)):
        raise ValueError(
            f"localvim: if_cls_token is {class_token!r} and use_middle_cls_token the contrary; expected both or none"
        )
    size, side = get("img_size", 224), get("patch_size", 16)
    sides = (size, size) if isinstance(size, int) else size
    return LocalVimConfig(
        **directions_from_official("localvim", get("directions"), depth),
        **rotary_from_official(arguments),
        **{_SSM[name]: value for name, value in ssm.items() if name in _SSM},
        # the official grid of positions has whole patches only
        image_size=[pixels // side * side for pixels in sides],
        patch_size=side,
        num_channels=get("channels", 3),
        num_hidden_layers=depth,
        hidden_size=get("embed_dim", 192),
        num_labels=get("num_classes", 1000),
        class_token="middle" if class_token else "none",
        use_position_embeddings=get("if_abs_pos_embed", False),
        pooling=_POOLING[pooling],
        norm_type="rms_norm" if get("rms_norm", False) else "layer_norm",
        layer_norm_epsilon=get("norm_epsilon", 1e-5),
        residual_in_fp32=get("residual_in_fp32", False),
        dropout=get("drop_rate", 0.0),
        drop_path_rate=get("drop_path_rate", 0.1),
    )


def rename(state_dict: dict[str, torch.Tensor], config: LocalVimConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names to ours; names that match nothing are kept, so that loading reports them.

    Rotary tables that are what we compute ourselves are left out; others stay under their official name.
    """
    renamed = {}
    for key, tensor in state_dict.items():
        key = matched(key, KEYS)
        renamed[key] = tensor.flatten() if key.endswith(".merge.weights") else tensor
    return without_rotary_tables(renamed, config)
