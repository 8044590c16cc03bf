# SPDX-License-Identifier: Apache-2.0
"""Official LocalVMamba checkpoints (hunto/LocalMamba, classes VSSM and Backbone_LocalVSSM) -> our models."""

from typing import Any

import torch

from vlmamba.models.local_scans import directions_from_official
from vlmamba.models.localvmamba.configuration_localvmamba import LocalVMambaConfig
from vlmamba.models.localvmamba.modeling_localvmamba import LocalVMambaBackbone, LocalVMambaForImageClassification
from vlmamba.models.official_maps import BLOCK, KEYS, rename_maps

MODELS = {"image-classification": LocalVMambaForImageClassification, "backbone": LocalVMambaBackbone}
_MERGE = r"base.encoder.stages.\1.blocks.\2.mixer.scans.merge."
_ALL_KEYS = [
    *KEYS,
    (BLOCK + r"op\.multi_scan\.attn\.norm\.", _MERGE + "gate.norm."),
    (BLOCK + r"op\.multi_scan\.attn\.global_reduce\.", _MERGE + "gate.reduce."),
    (BLOCK + r"op\.multi_scan\.attn\.channel_select\.", _MERGE + "gate.expand."),
    (BLOCK + r"op\.multi_scan\.weights$", _MERGE + "weights"),
]


def config_from_official(arguments: dict[str, Any]) -> LocalVMambaConfig:
    """The config of a `VSSM(**arguments)` or `Backbone_LocalVSSM(**arguments)`; what is left out takes the default.

    `d_state` and `dt_rank` have no effect there: only `ssm_d_state` and `ssm_dt_rank` have.

    Raises:
        ValueError: an option that no published LocalVMamba uses is set.
    """
    get = arguments.get
    if str(get("norm_layer", "LN")).lower() != "ln":
        raise ValueError(f"localvmamba: norm_layer is {get('norm_layer')!r}, expected 'LN'")
    if get("ssm_simple_init", False):
        raise ValueError(f"localvmamba: ssm_simple_init is {get('ssm_simple_init')!r}, expected False")
    depths, widths = list(get("depths", [2, 2, 9, 2])), get("dims", [96, 192, 384, 768])
    return LocalVMambaConfig(
        **directions_from_official("localvmamba", get("directions"), sum(depths)),
        hidden_sizes=[widths * 2**i for i in range(len(depths))] if isinstance(widths, int) else list(widths),
        depths=depths,
        patch_size=get("patch_size", 4),
        num_channels=get("in_chans", 3),
        num_labels=get("num_classes", 1000),
        state_size=get("ssm_d_state", 16),
        conv_kernel=max(get("ssm_conv", 3), 1),
        conv_bias=get("ssm_conv_bias", True),
        expand=get("ssm_ratio", 2.0),
        time_step_rank=get("ssm_dt_rank", "auto"),
        hidden_act=get("ssm_act_layer", "silu").lower(),
        patch_norm=get("patch_norm", True),
        dropout=get("ssm_drop_rate", 0.0),
        drop_path_rate=get("drop_path_rate", 0.1),
        out_indices=[i + 1 for i in sorted(get("out_indices", range(len(depths))))],  # ours begin with the stem
    )


def rename(state_dict: dict[str, torch.Tensor], config: LocalVMambaConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names and shapes to ours; names that match nothing are kept, so that loading reports them."""
    renamed = rename_maps(state_dict, _ALL_KEYS, "" if task == "backbone" else "localvmamba.")
    return {key: v.flatten() if key.endswith(".merge.weights") else v for key, v in renamed.items()}
