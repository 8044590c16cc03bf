# SPDX-License-Identifier: Apache-2.0
"""Official MambaVision checkpoints (NVlabs/MambaVision, classes MambaVision and MM_mamba_vision) -> our models."""

from typing import Any

import torch

from vlmamba.models.mambavision.configuration_mambavision import PRESETS, MambaVisionConfig
from vlmamba.models.mambavision.modeling_mambavision import MambaVisionBackbone, MambaVisionForImageClassification
from vlmamba.models.official_names import matched

MODELS = {"image-classification": MambaVisionForImageClassification, "backbone": MambaVisionBackbone}

_BLOCK = r"^levels\.(\d+)\.blocks\.(\d+)\."
_OURS = r"{encoder}.stages.\1.blocks.\2."
# official key -> ours, the same in every block; {encoder} is its place in the model of the task
KEYS = [
    (r"^patch_embed\.conv_down\.0\.", "{encoder}.embeddings.convolutions.0.conv."),
    (r"^patch_embed\.conv_down\.1\.", "{encoder}.embeddings.convolutions.0.norm.batch_norm."),
    (r"^patch_embed\.conv_down\.3\.", "{encoder}.embeddings.convolutions.1.conv."),
    (r"^patch_embed\.conv_down\.4\.", "{encoder}.embeddings.convolutions.1.norm.batch_norm."),
    (_BLOCK + r"conv([12])\.", _OURS + r"conv\3.conv."),
    (_BLOCK + r"gamma$", _OURS + "scale.weight"),
    (_BLOCK + r"gamma_1$", _OURS + "scale.weight"),
    (_BLOCK + r"gamma_2$", _OURS + "mlp_scale.weight"),
    (_BLOCK + r"mlp\.", _OURS + "mlp."),
    (_BLOCK + r"mixer\.(in_proj|out_proj|conv1d_x|conv1d_z|qkv|q_norm|k_norm)\.", _OURS + r"mixer.\3."),
    (_BLOCK + r"mixer\.proj\.", _OURS + "mixer.out_proj."),
    (_BLOCK + r"mixer\.(x_proj\.weight|A_log|D)$", _OURS + r"mixer.scans.\3"),
    (_BLOCK + r"mixer\.dt_proj\.", _OURS + "mixer.scans.dt_projs.0."),
    (r"^norm\.", "mambavision.norm.batch_norm."),
    (r"^head\.", "classifier."),
]
_CONV_NORM = (_BLOCK + r"norm([12])\.", _OURS + r"conv\3.norm.batch_norm.")
_NORMS = [(_BLOCK + r"norm1\.", _OURS + "norm."), (_BLOCK + r"norm2\.", _OURS + "mlp_norm.")]
# crop_pct where it is not 1.0
_CROPS = {"T2": 0.98, "S": 0.93, "L2_512_21k": 0.93, "L3_512_21k": 0.93}


def config_from_official(arguments: dict[str, Any]) -> MambaVisionConfig:
    """The config of a `MambaVision(**arguments)` or `MM_mamba_vision(**arguments)`.

    Sizes that are left out are those of MambaVision-T, as those of the official factory `mamba_vision_T`.

    Raises:
        ValueError: an option that has no counterpart is set.
    """
    get = arguments.get
    if (norm := get("norm_layer", "ln2d")) != "ln2d":
        raise ValueError(f"mambavision: norm_layer is {norm!r}, expected 'ln2d' as in all published backbones")
    defaults = MambaVisionConfig()
    width, depths = get("dim", defaults.hidden_sizes[0]), list(get("depths", defaults.depths))
    return MambaVisionConfig(
        stem_size=get("in_dim", defaults.stem_size),
        hidden_sizes=[int(width * 2**i) for i in range(len(depths))],
        depths=depths,
        window_sizes=list(get("window_size", defaults.window_sizes)),
        num_attention_heads=list(get("num_heads", defaults.num_attention_heads)),
        image_size=get("resolution", 224),
        num_channels=get("in_chans", 3),
        num_labels=get("num_classes", 1000),
        mlp_ratio=get("mlp_ratio", 4.0),
        qkv_bias=get("qkv_bias", True),
        qk_norm=bool(get("qk_scale")),  # the official classes pass it on under this name
        layer_scale_init_value=_scale(get("layer_scale")),
        conv_layer_scale_init_value=_scale(get("layer_scale_conv")),
        dropout=get("drop_rate", 0.0),
        attention_dropout=get("attn_drop_rate", 0.0),
        drop_path_rate=get("drop_path_rate", 0.2),
        out_indices=[i + 1 for i in sorted(get("out_indices", range(len(depths))))],  # ours begin with the stem
    )


def _scale(value: float | None) -> float | None:
    return None if value is None or isinstance(value, bool) else float(value)  # officially True is no scale either


def preprocessing(config: MambaVisionConfig) -> dict[str, Any]:
    """How the published model of this config prepares its images, where that differs from most."""
    for name, crop in _CROPS.items():
        sizes = {field: value for field, value in PRESETS[name].items() if field in ("hidden_sizes", "depths")}
        size = PRESETS[name].get("image_size", 224)
        if config.image_size == size and all(tuple(getattr(config, k)) == tuple(v) for k, v in sizes.items()):
            return {"crop_pct": crop}
    return {"crop_pct": 1.0}


def rename(state_dict: dict[str, torch.Tensor], config: MambaVisionConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names and shapes to ours; names that match nothing are kept, so that loading reports them."""
    encoder = "encoder" if task == "backbone" else "mambavision.encoder"
    count = len(config.depths)
    patterns = [*KEYS, *((rf"^outnorm{i}\.", f"hidden_states_norms.stage{i + 1}.") for i in range(count))]
    for i in range(count):
        inner = [_CONV_NORM] if i < config.num_conv_stages else _NORMS
        patterns += [(pattern.replace(r"(\d+)", f"({i})", 1), target) for pattern, target in inner]
        if i:  # officially a stage ends with what ours begins with
            key = rf"^levels\.{i - 1}\.downsample\.reduction\.0\."
            patterns.append((key, f"{{encoder}}.stages.{i}.downsample.conv."))
    patterns = [(pattern, target.replace("{encoder}", encoder)) for pattern, target in patterns]
    renamed = {}
    for key, tensor in state_dict.items():
        key = key.removeprefix("model.")  # as the models on the hub have it
        key = matched(key, patterns)
        if key.endswith((".mixer.scans.A_log", ".mixer.scans.D")):
            tensor = tensor.unsqueeze(0)  # of the one order
        renamed[key] = tensor
    return _joined(renamed)


def _joined(renamed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The convolutions of the two halves `[D, 1, W]` as one, over a map of one row."""
    for scanned in [key for key in renamed if key.endswith(".mixer.conv1d_x.weight")]:
        other = scanned.replace("conv1d_x", "conv1d_z")
        if other in renamed:
            both = torch.cat([renamed.pop(scanned), renamed.pop(other)])
            renamed[scanned.replace("conv1d_x", "conv")] = both.unsqueeze(2)
    return renamed
