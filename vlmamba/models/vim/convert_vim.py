# SPDX-License-Identifier: Apache-2.0
"""Official Vim checkpoints (hustvl/Vim, class VisionMamba) -> VimForImageClassification."""

from typing import Any

import torch

from vlmamba.models.official_names import matched
from vlmamba.models.rotary import rotary_from_official, without_rotary_tables
from vlmamba.models.vim.configuration_vim import VimConfig
from vlmamba.models.vim.modeling_vim import VimForImageClassification

MODELS = {"image-classification": VimForImageClassification}
# official key -> ours; `_b` marks the backward direction
KEYS = [
    (r"^patch_embed\.proj\.", "vim.embeddings.patch_embeddings."),
    (r"^pos_embed$", "vim.embeddings.position_embeddings"),
    (r"^cls_token$", "vim.embeddings.class_tokens"),
    (r"^norm_f\.", "vim.norm."),
    (r"^head\.", "classifier."),
    (r"^layers\.(\d+)\.norm\.", r"vim.layers.\1.norm."),
    (r"^layers\.(\d+)\.mixer\.(in_proj|out_proj)\.", r"vim.layers.\1.mixer.\2."),
    (r"^layers\.(\d+)\.mixer\.gamma$", r"vim.layers.\1.mixer.layer_scale"),
    (r"^layers\.(\d+)\.mixer\.(conv1d|x_proj|dt_proj)\.", r"vim.layers.\1.mixer.directions.0.\2."),
    (r"^layers\.(\d+)\.mixer\.(A_log|D)$", r"vim.layers.\1.mixer.directions.0.\2"),
    (r"^layers\.(\d+)\.mixer\.(conv1d|x_proj|dt_proj)_b\.", r"vim.layers.\1.mixer.directions.1.\2."),
    (r"^layers\.(\d+)\.mixer\.A_b_log$", r"vim.layers.\1.mixer.directions.1.A_log"),
    (r"^layers\.(\d+)\.mixer\.D_b$", r"vim.layers.\1.mixer.directions.1.D"),
]
_POOLING = {"none": "last", "mean": "mean", "max": "max", "all": "none"}
# of the mixer's arguments: those with a field here, and those that do not change what a trained model computes
_MIXER_SIZES = ("d_state", "d_conv", "expand", "dt_rank")
_WITHOUT_EFFECT = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path")


def config_from_official(arguments: dict[str, Any]) -> VimConfig:
    """The config of a `VisionMamba(**arguments)`; arguments left out take the official defaults.

    Raises:
        ValueError: an option that no published Vim uses is set.
    """
    get = arguments.get
    if get("if_bidirectional"):
        raise ValueError("vim: if_bidirectional is True, which no published Vim uses; expected False")
    ssm = get("ssm_cfg") or {}
    if unknown := ssm.keys() - {*_MIXER_SIZES, *_WITHOUT_EFFECT}:
        raise ValueError(f"vim: ssm_cfg has {', '.join(sorted(unknown))}, expected {', '.join(_MIXER_SIZES)}")
    bimamba = "v1" if get("if_bimamba") else get("bimamba_type", "v2")
    if bimamba not in ("none", "v1", "v2"):
        raise ValueError(f"vim: bimamba_type is {bimamba!r}, expected 'none', 'v1' or 'v2'")
    if not ssm.get("use_fast_path", True) and bimamba != "none":
        raise ValueError("vim: use_fast_path is False, expected True: without, the official code reads one direction")
    pooling = get("final_pool_type", "none")
    if pooling not in _POOLING:
        raise ValueError(f"vim: final_pool_type is {pooling!r}, expected one of {', '.join(_POOLING)}")
    if not get("if_cls_token", True):
        class_token = "none"
    elif get("use_double_cls_token", False):
        class_token = "both"
    else:
        class_token = "middle" if get("use_middle_cls_token", True) else "first"
    size, patch, stride = get("img_size", 224), get("patch_size", 16), get("stride", 16)
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(patch, int):
        raise ValueError(f"vim: patch_size is {patch!r}, expected one side")
    return VimConfig(
        **rotary_from_official(arguments),
        image_size=size,
        patch_size=patch,
        patch_stride=stride,
        # the official grid has whole patches only
        pad_images=all((side - patch) % stride == 0 for side in sides),
        num_channels=get("channels", 3),
        num_hidden_layers=get("depth", 24),
        hidden_size=get("embed_dim", 192),
        state_size=ssm.get("d_state", get("d_state", 16)),
        conv_kernel=ssm.get("d_conv", 4),
        expand=ssm.get("expand", 2),
        time_step_rank=ssm.get("dt_rank", "auto"),
        num_labels=get("num_classes", 1000),
        norm_type="rms_norm" if get("rms_norm", True) else "layer_norm",
        layer_norm_epsilon=get("norm_epsilon", 1e-5),
        pooling=_POOLING[pooling],
        use_position_embeddings=get("if_abs_pos_embed", True),
        scan="raster" if bimamba == "none" else "bidirectional",
        shared_directions="inputs" if bimamba == "v1" else "none",
        # only the v2 branch divides
        average_directions=bimamba == "v2" and get("if_divide_out", True),
        class_token=class_token,
        layer_scale_init_value=get("init_layer_scale"),
        residual_in_fp32=get("residual_in_fp32", True),
        drop_path_rate=get("drop_path_rate", 0.1),
    )


def rename(state_dict: dict[str, torch.Tensor], config: VimConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names to ours; names that match nothing are kept, so that loading reports them."""
    renamed = {}
    for key, tensor in state_dict.items():
        key = matched(key, KEYS)
        renamed[key] = tensor
    if config.class_token == "both":
        ends = [f"cls_token_{end}" for end in ("head", "tail")]
        if all(end in renamed for end in ends):
            renamed["vim.embeddings.class_tokens"] = torch.cat([renamed.pop(end) for end in ends], dim=1)
    if config.shared_directions == "inputs":
        for i in range(config.num_hidden_layers):
            mixer = f"vim.layers.{i}.mixer"
            if (other := renamed.pop(f"{mixer}.directions.1.A_log", None)) is not None:
                renamed[f"{mixer}.other_A_log"] = other.unsqueeze(0)
    return without_rotary_tables(renamed, config)
