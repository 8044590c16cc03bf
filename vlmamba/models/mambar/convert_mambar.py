# SPDX-License-Identifier: Apache-2.0
"""Official Mamba-R checkpoints (wangf3014/Mamba-Reg, class VisionMamba) -> MambaRForImageClassification."""

from typing import Any

import torch

from vlmamba.models.mambar.configuration_mambar import MambaRConfig
from vlmamba.models.mambar.modeling_mambar import MambaRForImageClassification
from vlmamba.models.official_names import matched
from vlmamba.scans import registers

MODELS = {"image-classification": MambaRForImageClassification}
_MIXER = r"^layers\.(\d+)\.mixer\."
# official key -> ours; `_b` marks the backward direction
KEYS = [
    (r"^patch_embed\.proj\.", "mambar.embeddings.patch_embeddings."),
    (r"^cls_token$", "mambar.embeddings.class_tokens"),
    (r"^norm_f\.", "mambar.norm."),
    (r"^neck\.", "mambar.neck.reduction."),
    (r"^norm_neck\.", "mambar.neck.norm."),
    (r"^head\.", "classifier."),
    (r"^layers\.(\d+)\.norm\.", r"mambar.layers.\1.norm."),
    (_MIXER + r"(in_proj|out_proj)\.", r"mambar.layers.\1.mixer.\2."),
    (_MIXER + r"(conv1d|x_proj|dt_proj)\.", r"mambar.layers.\1.mixer.directions.0.\2."),
    (_MIXER + r"(A_log|D)$", r"mambar.layers.\1.mixer.directions.0.\2"),
    (_MIXER + r"(conv1d|x_proj|dt_proj)_b\.", r"mambar.layers.\1.mixer.directions.1.\2."),
    (_MIXER + r"A_b_log$", r"mambar.layers.\1.mixer.directions.1.A_log"),
    (_MIXER + r"D_b$", r"mambar.layers.\1.mixer.directions.1.D"),
]
# of the mixer's arguments: those with a field here, and those that do not change what a trained model computes
_MIXER_SIZES = ("d_state", "d_conv", "expand", "dt_rank")
_WITHOUT_EFFECT = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path")


def config_from_official(arguments: dict[str, Any]) -> MambaRConfig:
    """The config of a `VisionMamba(**arguments)`; arguments left out take the official defaults.

    Raises:
        ValueError: an option that has no counterpart is set.
    """
    get = arguments.get
    mixer = get("ssm_cfg") or {}
    if unknown := mixer.keys() - {*_MIXER_SIZES, *_WITHOUT_EFFECT}:
        raise ValueError(f"mambar: ssm_cfg has {', '.join(sorted(unknown))}, expected {', '.join(_MIXER_SIZES)}")
    registers, reduction, width = get("num_cls_tokens", 1), get("cls_reduce", 1), get("embed_dim", 192)
    if registers < 1:
        raise ValueError(f"mambar: num_cls_tokens is {registers}, expected 1 or more")
    reduction = max(reduction, 1)
    if registers % reduction or width % reduction:
        raise ValueError(
            f"mambar: cls_reduce is {reduction}, expected a divisor of num_cls_tokens {registers} and embed_dim {width}"
        )
    if not mixer.get("use_fast_path", True):
        raise ValueError("mambar: use_fast_path is False, expected True: without, the official code reads one way")
    size, patch = get("img_size", 224), get("patch_size", 16)
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(patch, int):
        raise ValueError(f"mambar: patch_size is {patch!r}, expected one side")
    return MambaRConfig(
        image_size=size,
        patch_size=patch,
        # the official grid has whole patches only
        pad_images=all(side % patch == 0 for side in sides),
        num_channels=get("channels", 3),
        num_hidden_layers=get("depth", 24),
        hidden_size=width,
        num_registers=registers,
        register_reduction=reduction,
        state_size=mixer.get("d_state", 16),
        conv_kernel=mixer.get("d_conv", 4),
        expand=mixer.get("expand", 2),
        time_step_rank=mixer.get("dt_rank", "auto"),
        num_labels=max(get("num_classes", 1000), 0),
        norm_type="rms_norm" if get("rms_norm", False) else "layer_norm",
        layer_norm_epsilon=get("norm_epsilon", 1e-5),
        residual_in_fp32=get("residual_in_fp32", False),
        dropout=get("drop_rate", 0.0),
        drop_path_rate=get("drop_path_rate", 0.1),
    )


def preprocessing(config: MambaRConfig) -> dict[str, Any]:
    """How the published models prepare their images, where that differs from most."""
    return {"crop_pct": 1.0}


def rename(state_dict: dict[str, torch.Tensor], config: MambaRConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names to ours; names that match nothing are kept, so that loading reports them."""
    renamed = {}
    for key, tensor in state_dict.items():
        key = matched(key, KEYS)
        renamed[key] = tensor
    if "pos_embed" in renamed and "pos_embed_cls" in renamed:
        # officially patches and registers have a table each; ours is in the order of the tokens
        patches, extra = renamed.pop("pos_embed"), renamed.pop("pos_embed_cls")
        order = registers(extra.shape[1]).paths(1, patches.shape[1])[0]
        renamed["mambar.embeddings.position_embeddings"] = torch.cat([patches, extra], dim=1)[:, order.long()]
    return renamed
