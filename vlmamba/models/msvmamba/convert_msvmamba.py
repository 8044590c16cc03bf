# SPDX-License-Identifier: Apache-2.0
"""Official MSVMamba checkpoints (YuHengsss/MSVMamba, classes VSSM and Backbone_VSSM) -> our models."""

import re
from typing import Any

import torch

from vlmamba.models.msvmamba.configuration_msvmamba import MSVMambaConfig
from vlmamba.models.msvmamba.modeling_msvmamba import MSVMambaBackbone, MSVMambaForImageClassification

MODELS = {"image-classification": MSVMambaForImageClassification, "backbone": MSVMambaBackbone}

_BLOCK = r"^layers\.(\d+)\.blocks\.(\d+)\."
_MIXER = r"{encoder}.stages.\1.blocks.\2.mixer."
_MLP = r"{encoder}.stages.\1.blocks.\2.mlp."
# official key -> ours; {encoder} is its place in the model of the task
KEYS = [
    (r"^patch_embed\.0\.", r"{encoder}.embeddings.convolutions.0.conv."),
    (r"^patch_embed\.2\.", r"{encoder}.embeddings.convolutions.0.norm."),
    (_BLOCK + r"op\.(in_proj|out_proj|out_norm|conv2d)\.", _MIXER + r"\3."),
    (_BLOCK + r"op\.conv2d_b1\.", _MIXER + "low_conv2d."),
    (_BLOCK + r"op\.se\.fc\.0\.", _MIXER + "squeeze.reduce."),
    (_BLOCK + r"op\.se\.fc\.2\.", _MIXER + "squeeze.expand."),
    (_BLOCK + r"op\.(x_proj_weight|dt_projs_weight|dt_projs_bias|A_logs|Ds)$", _MIXER + r"\3"),
    (_BLOCK + r"norm\.", r"{encoder}.stages.\1.blocks.\2.norm."),
    (_BLOCK + r"norm2\.", r"{encoder}.stages.\1.blocks.\2.mlp_norm."),
    (_BLOCK + r"convFFN\.linear([12])\.", _MLP + r"fc\3."),
    (_BLOCK + r"convFFN\.dwc\.", _MLP + "conv."),
    (r"^classifier\.norm\.", "msvmamba.norm."),
    (r"^classifier\.head\.", "classifier."),
]
# the parameters of both scans in one tensor -> ours: of the linear layers of x and of dt, or as they are
_STACKED = {
    "x_proj_weight": "x_proj.weight",
    "dt_projs_weight": "dt_projs.0.weight",
    "dt_projs_bias": "dt_projs.0.bias",
    "A_logs": "A_log",
    "Ds": "D",
}
# argument -> its official default and what all published models have
_FIXED = {
    "forward_type": ("v2", "v2"),  # whichever it is, the multi-scale scan replaces it
    "sscore_type": ("None", "multiscale_4scan_12"),
    "mlp_ratio": (4.0, 0.0),
    "convFFN": (False, True),
    "patch_norm": (True, True),
    "norm_layer": ("ln", "ln"),
    "downsample_version": ("v2", "v1"),
    "patchembed_version": ("v1", "v1"),
    "ms_split": ([1, 3], [1, 3]),
    "add_conv": (True, True),
    "b1_seq": (False, False),
    "sep_norm": (False, False),
    "adaptive_merge": (False, False),
    "continous_patch": (False, False),
    "inter_block_ssm": (False, False),
    "recurrent": (False, False),
    "lpu": (False, False),
    "ms_fusion": (None, None),
    "grid_size": (0, 0),
    "multiscale_ratio": ([], []),
    "multiscale_ksize": ([], []),
}


def _check_fixed(arguments: dict[str, Any], depths: list[int]) -> None:
    for name, (default, expected) in _FIXED.items():
        value = arguments.get(name, default)
        value = list(value) if isinstance(value, tuple) else value
        if (value.lower() if isinstance(value, str) and isinstance(expected, str) else value) != expected:
            raise ValueError(f"msvmamba: {name} is {value!r}, expected {expected!r} as in all published models")
    stages = arguments.get("ms_stage", range(len(depths)))
    if not set(range(len(depths))) <= set(stages):
        raise ValueError(f"msvmamba: ms_stage is {stages!r}, expected all {len(depths)} stages")
    ratio, rank_ratio = arguments.get("ssm_ratio", 2.0), arguments.get("ssm_rank_ratio", 2.0)
    if 0 < rank_ratio < ratio:
        raise ValueError(f"msvmamba: ssm_rank_ratio is {rank_ratio}, expected at least ssm_ratio {ratio}")


def config_from_official(arguments: dict[str, Any]) -> MSVMambaConfig:
    """The config of a `VSSM(**arguments)` or `Backbone_VSSM(**arguments)`; what is left out takes the official default.

    Raises:
        ValueError: an option that no published model uses is set.
    """
    get = arguments.get
    depths, widths = list(get("depths", [2, 2, 9, 2])), get("dims", [96, 192, 384, 768])
    _check_fixed(arguments, depths)
    return MSVMambaConfig(
        hidden_sizes=[widths * 2**i for i in range(len(depths))] if isinstance(widths, int) else list(widths),
        depths=depths,
        patch_size=get("patch_size", 4),
        num_channels=get("in_chans", 3),
        num_labels=get("num_classes", 1000),
        state_size=get("ssm_d_state", 16),
        conv_kernel=get("ssm_conv", 3),
        conv_bias=get("ssm_conv_bias", True),
        expand=get("ssm_ratio", 2.0),
        time_step_rank=get("ssm_dt_rank", "auto"),
        hidden_act=get("ssm_act_layer", "silu").lower(),
        squeeze_reduction=8 if get("add_se", False) else 0,
        dropout=get("ssm_drop_rate", 0.0),
        mlp_dropout=get("ffn_dropout", 0.2),
        drop_path_rate=get("drop_path_rate", 0.1),
        out_indices=[i + 1 for i in get("out_indices", range(len(depths)))],  # ours begin with the stem
    )


def _scans(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One tensor for two scans, of the smaller map first, in our shapes."""
    mixer, _, name = key.rpartition(".")
    if name not in _STACKED or tensor.shape[0] % 2:
        return {key: tensor}
    parts = tensor.chunk(2) if name in ("A_logs", "Ds") else tensor.unbind()
    if name in ("A_logs", "Ds"):
        parts = [part.unsqueeze(0) for part in parts]
    return {f"{mixer}.{place}.{_STACKED[name]}": p for place, p in zip(("low_scans", "scans"), parts, strict=True)}


def rename(state_dict: dict[str, torch.Tensor], config: MSVMambaConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names and shapes to ours; names that match nothing are kept, so that loading reports them."""
    encoder = "encoder" if task == "backbone" else "msvmamba.encoder"
    patterns = [*KEYS]
    for i in range(len(config.depths) - 1):  # officially a stage ends with what ours begins with
        patterns.append((rf"^layers\.{i}\.downsample\.", f"{{encoder}}.stages.{i + 1}.downsample."))
    patterns += [(rf"^outnorm{i}\.", f"hidden_states_norms.stage{i + 1}.") for i in range(len(config.depths))]
    renamed = {}
    for key, tensor in state_dict.items():
        for pattern, target in patterns:
            new, found = re.subn(pattern, target.replace("{encoder}", encoder), key)
            if found:
                key = new
                break
        if re.search(r"\.fc[12]\.weight$", key):
            tensor = tensor.flatten(1)  # a convolution of side 1
        renamed |= _scans(key, tensor)
    return renamed
