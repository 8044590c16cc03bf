# SPDX-License-Identifier: Apache-2.0
"""Official EfficientVMamba checkpoints (TerryPei/EfficientVMamba, EfficientVSSM and its backbone) -> our models."""

from typing import Any

import torch

from vlmamba.models.efficientvmamba.configuration_efficientvmamba import EfficientVMambaConfig
from vlmamba.models.efficientvmamba.modeling_efficientvmamba import (
    EfficientVMambaBackbone,
    EfficientVMambaForImageClassification,
)
from vlmamba.models.official_maps import BLOCK, KEYS, downsampling, rename_maps

MODELS = {"image-classification": EfficientVMambaForImageClassification, "backbone": EfficientVMambaBackbone}
_SCANS = r"base.encoder.stages.\1.blocks.\2.mixer.scan_branch."
_LOCAL = r"base.encoder.stages.\1.blocks.\2.mixer.conv_branch."
_GATE = r"base.encoder.stages.\1.blocks.\2.mixer.gate."
_CONVOLUTIONAL = r"^layers\.(\d+)\.(\d+)\."
# official key -> ours, of the parts of a convolutional block
_PARTS = {
    "conv_pw.0": "widen",
    "conv_pw.1": "widen_norm.batch_norm",
    "conv_dw.0": "conv",
    "conv_dw.1": "conv_norm.batch_norm",
    "se.conv_reduce": "squeeze.reduce",
    "se.conv_expand": "squeeze.expand",
    "conv_pw2.0": "narrow",
    "conv_pw2.1": "narrow_norm.batch_norm",
}


def _convolutional(part: str, ours: str):
    """Blocks of convolutional stages are counted from 1, behind a permutation."""

    def target(match):
        return f"base.encoder.stages.{match[1]}.blocks.{int(match[2]) - 1}.mixer.{ours}."

    return _CONVOLUTIONAL + part.replace(".", r"\.") + r"\.", target


_ALL_KEYS = [
    (BLOCK + r"op\.(in_proj|conv2d|out_norm|out_proj)\.", _SCANS + r"\3."),
    (BLOCK + r"op\.(x_proj_weight|dt_projs_weight|dt_projs_bias|A_logs|Ds)$", _SCANS + r"scans.\3"),
    (BLOCK + r"conv_branch\.0\.", _LOCAL + "conv."),
    (BLOCK + r"conv_branch\.1\.", _LOCAL + "norm.batch_norm."),
    (BLOCK + r"conv_branch\.3\.", _LOCAL + "out_proj."),
    (BLOCK + r"se\.norm\.", _GATE + "norm."),
    (BLOCK + r"se\.global_reduce\.", _GATE + "reduce."),
    (BLOCK + r"se\.channel_select\.", _GATE + "expand."),
    (BLOCK + r"norm2\.", r"base.encoder.stages.\1.blocks.\2.mlp_norm."),
    (BLOCK + r"mlp\.", r"base.encoder.stages.\1.blocks.\2.mlp."),
    *(_convolutional(part, ours) for part, ours in _PARTS.items()),
    # the step to the next stage, in stages with scans and, behind blocks and two permutations, without
    downsampling(r"^layers\.(\d+)\.\d+\.(?=norm|reduction)", "base.encoder.stages.{}.downsample."),
    downsampling(r"^layers\.(\d+)\.(?:downsample|\d+)\.1\.", "base.encoder.stages.{}.downsample.conv."),
    downsampling(r"^layers\.(\d+)\.(?:downsample|\d+)\.3\.", "base.encoder.stages.{}.downsample.norm."),
    *KEYS,
]
_LINEAR = (".out_proj.weight", ".reduce.weight", ".expand.weight", ".widen.weight", ".narrow.weight")


def config_from_official(arguments: dict[str, Any]) -> EfficientVMambaConfig:
    """The config of an `EfficientVSSM(**arguments)`, or its backbone; what is left out takes the official default.

    Of these only `ssm_ratio` and `mlp_ratio` change the mixers; `d_state`, `dt_rank`, `window_size`, `shared_ssm` and
    others are taken and have no effect there.

    Raises:
        ValueError: an option that has no counterpart is set.
    """
    get = arguments.get
    if get("step_size", 2) != 2:
        raise ValueError(f"efficientvmamba: step_size is {get('step_size')!r}, expected 2, as its four orders are for")
    if get("ssm_ratio", 2.0) > 2:
        raise ValueError(f"efficientvmamba: ssm_ratio is {get('ssm_ratio')!r}, expected at most 2")
    depths, widths = list(get("depths", [2, 2, 9, 2])), get("dims", [96, 192, 384, 768])
    return EfficientVMambaConfig(
        hidden_sizes=[widths * 2**i for i in range(len(depths))] if isinstance(widths, int) else list(widths),
        depths=depths,
        num_scan_stages=min(2, len(depths)),
        patch_size=get("patch_size", 4),
        num_channels=get("in_chans", 3),
        num_labels=get("num_classes", 1000),
        expand=get("ssm_ratio", 2.0),
        mlp_ratio=get("mlp_ratio", 4.0),
        patch_norm=get("patch_norm", True),
        downsample="conv2" if get("downsample_version", "v2") == "v2" else "merge",
        drop_path_rate=get("drop_path_rate", 0.1),
        out_indices=[i + 1 for i in sorted(get("out_indices", range(len(depths))))],  # ours begin with the stem
    )


def rename(state_dict: dict[str, torch.Tensor], config: EfficientVMambaConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names and shapes to ours; names that match nothing are kept, so that loading reports them."""
    renamed = rename_maps(state_dict, _ALL_KEYS, "" if task == "backbone" else "efficientvmamba.")
    # convolutions of side 1 are linear layers here
    return {key: v.flatten(1) if key.endswith(_LINEAR) else v for key, v in renamed.items()}
