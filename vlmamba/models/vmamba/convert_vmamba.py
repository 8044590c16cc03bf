# SPDX-License-Identifier: Apache-2.0
"""Official VMamba checkpoints (MzeroMiko/VMamba, classes VSSM and Backbone_VSSM; Sigma's copy) -> our models."""

import re
from typing import Any

import torch
import torch.nn.functional as F

from vlmamba.models.official_names import matched
from vlmamba.models.vmamba.configuration_vmamba import VMambaConfig
from vlmamba.models.vmamba.modeling_vmamba import VMambaBackbone, VMambaForImageClassification

MODELS = {"image-classification": VMambaForImageClassification, "backbone": VMambaBackbone}

# names of the first release -> official names
_FIRST_RELEASE = [
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
]
_BLOCK = r"^layers\.(\d+)\.blocks\.(\d+)\."
# official key -> ours, of what keeps its shape; {encoder} is its place in the model of the task
KEYS = [
    (r"^patch_embed\.0\.", r"{encoder}.embeddings.convolutions.0.conv."),
    (r"^patch_embed\.2\.", r"{encoder}.embeddings.convolutions.0.norm."),
    (r"^patch_embed\.5\.", r"{encoder}.embeddings.convolutions.1.conv."),
    (r"^patch_embed\.7\.", r"{encoder}.embeddings.convolutions.1.norm."),
    (r"^pos_embed$", r"{encoder}.embeddings.position_embeddings"),
    (_BLOCK + r"op\.(in_proj|conv2d|out_proj)\.", r"{encoder}.stages.\1.blocks.\2.mixer.\3."),
    (
        _BLOCK + r"op\.(x_proj_weight|dt_projs_(?:weight|bias)|A_logs|Ds)$",
        r"{encoder}.stages.\1.blocks.\2.mixer.scans.\3",
    ),
    (_BLOCK + r"norm\.", r"{encoder}.stages.\1.blocks.\2.norm."),
    (_BLOCK + r"norm2\.", r"{encoder}.stages.\1.blocks.\2.mlp_norm."),
    (_BLOCK + r"mlp\.", r"{encoder}.stages.\1.blocks.\2.mlp."),
    (r"^classifier\.norm\.", "vmamba.norm."),
    (r"^classifier\.head\.", "classifier."),
]
_OUT_NORMS = {
    "onnone": "none",
    "ondwconv3": "conv",
    "oncnorm": "layer_norm_conv",
    "onsoftmax": "softmax",
    "onsigmoid": "sigmoid",
}
# official keys of the norm after the scan, by its kind
_OUT_NORM_KEYS = {
    "layer_norm": {"": "out_norm"},
    "conv": {"1.": "out_conv"},
    "layer_norm_conv": {"0.": "out_norm", "2.": "out_conv"},
}
_SCANS = {
    **dict.fromkeys(("v0", "v0seq", "v01", "v02", "v03", "v04", "v05", "v2", "v3", "v4"), "cross_scan"),
    **dict.fromkeys(("v051d", "v31d"), "cross_scan_unidi"),
    **dict.fromkeys(("v052d", "v32d"), "cross_scan_bidi"),
    **dict.fromkeys(("v052dc", "v32dc"), "cross_scan"),
    "v052d3": "cross_scan_rot90",
}
_NORMS = {"ln": "layer_norm", "ln2d": "layer_norm", "bn": "batch_norm"}
# end of the name of a norm that the config chooses the kind of: all but the mixers'
_BATCH_NORM = re.compile(r"(\.(?:norm|mlp_norm|stage\d+))\.(weight|bias|running_\w+|num_batches_tracked)$")
_DOWNSAMPLE = {"v1": "merge", "v2": "conv2", "v3": "conv3"}
_PATCH_EMBEDDING = {"v1": "single", "v2": "double"}
_INITIALIZATION = {"v0": "mamba", "v1": "normal", "v2": "uniform"}


def _forward_type(value: str) -> dict[str, Any]:
    """What the mixer's tags say: "v05_noz" is a cross-scan without a gate."""
    kind, *tags = re.sub(r"(?<=\d)noz", "_noz", value).split("_")
    if kind not in _SCANS:
        raise ValueError(f"vmamba: forward_type is {value!r}, expected one of {', '.join(_SCANS)} with tags")
    choices = {"scan": _SCANS[kind], "cascade": kind.endswith("dc"), "gate": "activated", "out_norm": "layer_norm"}
    for tag in tags:
        if tag in ("noz", "nozact"):
            choices["gate"] = "none" if tag == "noz" else "linear"
        elif tag in _OUT_NORMS:
            choices["out_norm"] = _OUT_NORMS[tag]
        elif tag == "oact":
            choices["activate_output"] = True
        elif tag != "no32":  # whether operands are widened before the scan; ours keeps a float32 state for all
            raise ValueError(f"vmamba: forward_type is {value!r}, whose tag {tag!r} is unknown")
    return choices


def _choice(arguments: dict[str, Any], name: str, default: str, table: dict[str, str]) -> str:
    value = str(arguments.get(name, default)).lower()
    if value not in table:
        raise ValueError(f"vmamba: {name} is {value!r}, expected one of {', '.join(table)}")
    return table[value]


def config_from_official(arguments: dict[str, Any]) -> VMambaConfig:
    """The config of a `VSSM(**arguments)` or `Backbone_VSSM(**arguments)`; what is left out takes the official default.

    Some arguments have two names: that of VMamba, and that of its first release and of Sigma's copy.

    Raises:
        ValueError: an option that has no counterpart is set.
    """
    if arguments.get("forward_type") in ("v0", "v0seq"):  # these take no other
        arguments = {**arguments, "ssm_conv": 3, "ssm_conv_bias": True, "ssm_act_layer": "silu", "ssm_init": "v0"}
    get = arguments.get
    depths, widths = list(get("depths", [2, 2, 9, 2])), get("dims", [96, 192, 384, 768])
    size, patch = get("imgsize", 224), get("patch_size", 4)
    return VMambaConfig(
        hidden_sizes=[widths * 2**i for i in range(len(depths))] if isinstance(widths, int) else list(widths),
        depths=depths,
        # the official grid of positions has whole patches only
        image_size=size // patch * patch if get("posembed", False) else size,
        patch_size=patch,
        num_channels=get("in_chans", 3),
        num_labels=get("num_classes", 1000),
        state_size=get("ssm_d_state", get("d_state", 16)),
        conv_kernel=max(get("ssm_conv", 3), 1),
        conv_bias=get("ssm_conv_bias", True),
        expand=get("ssm_ratio", 2.0),
        time_step_rank=get("ssm_dt_rank", get("dt_rank", "auto")),
        hidden_act=get("ssm_act_layer", "silu").lower(),
        **_forward_type(get("forward_type", "v2")),
        mlp_ratio=get("mlp_ratio", 4.0),
        mlp_act=get("mlp_act_layer", "gelu").lower(),
        mlp_gated=get("gmlp", False),
        norm_type=_choice(arguments, "norm_layer", "ln", _NORMS),
        patch_embedding=_choice(arguments, "patchembed_version", "v1", _PATCH_EMBEDDING),
        patch_norm=get("patch_norm", True),
        downsample=_choice(arguments, "downsample_version", "v2", _DOWNSAMPLE),
        use_position_embeddings=get("posembed", False),
        dropout=get("ssm_drop_rate", get("attn_drop_rate", 0.0)),
        mlp_dropout=get("mlp_drop_rate", get("drop_rate", 0.0)),
        drop_path_rate=get("drop_path_rate", 0.1),
        initialization=_choice(arguments, "ssm_init", "v0", _INITIALIZATION),
        out_indices=[i + 1 for i in sorted(get("out_indices", range(len(depths))))],  # ours begin with the stem
    )


def _patterns(config: VMambaConfig, encoder: str) -> list[tuple[str, str]]:
    """All that the table says, and what depends on the config: its downsampling and its norm after the scan."""
    patterns = [*KEYS]
    for part, ours in _OUT_NORM_KEYS.get(config.out_norm, {}).items():
        key = _BLOCK + r"op\.out_norm\." + re.escape(part)
        patterns.append((key, r"{encoder}.stages.\1.blocks.\2.mixer." + ours + "."))
    parts = {"norm": "norm", "reduction": "reduction"} if config.downsample == "merge" else {"1": "conv", "3": "norm"}
    for i in range(len(config.depths) - 1):
        for part, ours in parts.items():
            key = rf"^layers\.{i}\.downsample\.{part}\."
            patterns.append((key, f"{{encoder}}.stages.{i + 1}.downsample.{ours}."))
    for i in range(len(config.depths)):
        patterns.append((rf"^outnorm{i}\.", f"hidden_states_norms.stage{i + 1}."))
    return [(key, target.replace("{encoder}", encoder)) for key, target in patterns]


def _directions(key: str, tensor: torch.Tensor, config: VMambaConfig) -> dict[str, torch.Tensor]:
    """Parameters that hold all directions, in our shapes: K linear layers for the time steps."""
    prefix, _, name = key.rpartition(".")
    if tensor.shape[0] % 4:
        return {key: tensor}
    parts = tensor.unflatten(0, (4, -1)) if name in ("A_logs", "Ds") else tensor
    if config.cascade:  # official: both ways along the rows, then along the columns; ours: rows, columns, and back
        parts = parts[[0, 2, 1, 3]]
    if name == "x_proj_weight":
        return {f"{prefix}.x_proj.weight": parts.flatten(0, 1)}
    if name in ("A_logs", "Ds"):
        return {f"{prefix}.{'A_log' if name == 'A_logs' else 'D'}": parts}
    return {f"{prefix}.dt_projs.{k}.{name.rpartition('_')[2]}": part for k, part in enumerate(parts)}


def _positions(table: torch.Tensor, config: VMambaConfig) -> torch.Tensor:
    """`[1, C, h, w]` -> `[1, h, w, C]`, resized, as officially, when the model is made for images of another size."""
    if table.shape[2:] != config.grid_size:
        table = F.interpolate(table.float(), size=config.grid_size, mode="bicubic", align_corners=False).to(table.dtype)
    return table.permute(0, 2, 3, 1)


def rename(state_dict: dict[str, torch.Tensor], config: VMambaConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names and shapes to ours; names that match nothing are kept, so that loading reports them."""
    patterns = _patterns(config, "encoder" if task == "backbone" else "vmamba.encoder")
    renamed = {}
    for key, tensor in state_dict.items():
        for pattern, target in _FIRST_RELEASE:
            key = re.sub(pattern, target, key)
        key = matched(key, patterns)
        if key.endswith(("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight", "reduction.weight")):
            tensor = tensor.flatten(1)  # linear layers of early checkpoints are convolutions of side 1
        if key.endswith(".position_embeddings"):
            # the official backbone has them and does not add them
            tensor = torch.zeros_like(tensor) if task == "backbone" else tensor
            tensor = _positions(tensor, config)
        if config.norm_type == "batch_norm":
            key = _BATCH_NORM.sub(r"\1.batch_norm.\2", key)
        if key.endswith((".x_proj_weight", ".dt_projs_weight", ".dt_projs_bias", ".A_logs", ".Ds")):
            renamed |= _directions(key, tensor, config)
        else:
            renamed[key] = tensor
    return renamed
