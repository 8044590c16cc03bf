# SPDX-License-Identifier: Apache-2.0
"""Official MSVMamba checkpoints (YuHengsss/MSVMamba, classes VSSM and Backbone_VSSM) -> our models."""

from typing import Any

import torch

from vlmamba.models.msvmamba.configuration_msvmamba import MSVMambaConfig
from vlmamba.models.msvmamba.modeling_msvmamba import MSVMambaBackbone, MSVMambaForImageClassification
from vlmamba.models.official_maps import BLOCK, KEYS, rename_maps

MODELS = {"image-classification": MSVMambaForImageClassification, "backbone": MSVMambaBackbone}

_MIXER = r"base.encoder.stages.\1.blocks.\2.mixer."
_MLP = r"base.encoder.stages.\1.blocks.\2.mlp."
# official key -> ours, of what VMamba has not
PATTERNS = [
    (BLOCK + r"op\.conv2d_b1\.", _MIXER + "low_conv2d."),
    (BLOCK + r"op\.se\.fc\.0\.", _MIXER + "squeeze.reduce."),
    (BLOCK + r"op\.se\.fc\.2\.", _MIXER + "squeeze.expand."),
    (BLOCK + r"norm2\.", r"base.encoder.stages.\1.blocks.\2.mlp_norm."),
    (BLOCK + r"convFFN\.linear([12])\.", _MLP + r"fc\3."),
    (BLOCK + r"convFFN\.dwc\.", _MLP + "conv."),
    *KEYS,
]
# argument -> its official default and what all published models have
_FIXED = {
    "forward_type": ("v2", "v2"),
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
        out_indices=[i + 1 for i in sorted(get("out_indices", range(len(depths))))],  # ours begin with the stem
    )


def rename(state_dict: dict[str, torch.Tensor], config: MSVMambaConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names and shapes to ours; names that match nothing are kept, so that loading reports them."""
    renamed = {}
    for key, tensor in rename_maps(state_dict, PATTERNS, "" if task == "backbone" else "msvmamba.").items():
        mixer, scans, name = key.partition(".scans.")
        if not scans:
            # the MLPs' linear layers are officially convolutions of side 1
            renamed[key] = tensor.flatten(1) if key.endswith((".fc1.weight", ".fc2.weight")) else tensor
        elif name.startswith("dt_projs."):  # the first of two is the smaller map's
            place = name.replace("dt_projs.1.", "dt_projs.0.")
            renamed[f"{mixer}.{'low_scans' if place == name else 'scans'}.{place}"] = tensor
        else:
            low, whole = tensor.tensor_split(2)
            renamed |= {f"{mixer}.low_scans.{name}": low, f"{mixer}.scans.{name}": whole}
    return renamed
