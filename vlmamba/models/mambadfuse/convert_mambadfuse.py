# SPDX-License-Identifier: Apache-2.0
"""Official MambaDFuse checkpoints -> MambaDFuseForImageFusion."""

import re
from typing import Any

import torch

from vlmamba.models.mambadfuse.configuration_mambadfuse import MambaDFuseConfig
from vlmamba.models.mambadfuse.modeling_mambadfuse import MambaDFuseForImageFusion
from vlmamba.models.official_names import matched

MODELS = {"image-fusion": MambaDFuseForImageFusion}
_BLOCKS = {
    "high_level_feature_extraction1": "encoder",
    "high_level_feature_extraction2": "encoder_x",
    "feature_re": "reconstruction",
}
_SCAN = r"(conv1d\.|x_proj\.|dt_proj\.|A_log$|D$)"


def _counted(target: str):
    """Official blocks are counted from 1."""
    return lambda match: target.format(int(match[1]) - 1, *match.groups()[1:])


# official key -> ours
KEYS = [
    (r"^patch_embed\.norm\.", "norm."),
    (r"^low_level_feature_extraction([12])\.", lambda match: f"stem.{2 * int(match[1]) - 2}."),
    (r"^conv_last([123])\.", lambda match: f"head.{2 * int(match[1]) - 2}."),
    (rf"^({'|'.join(_BLOCKS)})\.(\d+)\.norm\.body\.", lambda match: f"{_BLOCKS[match[1]]}.{match[2]}.norm."),
    (
        rf"^({'|'.join(_BLOCKS)})\.(\d+)\.encoder\.{_SCAN}",
        lambda match: f"{_BLOCKS[match[1]]}.{match[2]}.mixer.directions.0.{match[3]}",
    ),
    (rf"^({'|'.join(_BLOCKS)})\.(\d+)\.encoder\.", lambda match: f"{_BLOCKS[match[1]]}.{match[2]}.mixer."),
    (r"^channel_exchange(\d+)\.norm1\.body\.", _counted("exchange.{}.norm.")),
    (r"^channel_exchange(\d+)\.norm2\.body\.", _counted("exchange.{}.norm_x.")),
    (rf"^channel_exchange(\d+)\.I1encoder\.{_SCAN}", _counted("exchange.{}.mixer.directions.0.{}")),
    (rf"^channel_exchange(\d+)\.I2encoder\.{_SCAN}", _counted("exchange.{}.mixer_x.directions.0.{}")),
    (r"^channel_exchange(\d+)\.I1encoder\.", _counted("exchange.{}.mixer.")),
    (r"^channel_exchange(\d+)\.I2encoder\.", _counted("exchange.{}.mixer_x.")),
    (r"^shallow_fusion1\.", "shallow_fusion."),
    (r"^shallow_fusion2\.", "shallow_fusion_x."),
    (r"^M3_block(\d+)\.norm([123])\.body\.", lambda m: f"deep_fusion.{int(m[1]) - 1}.norms.{int(m[2]) - 1}."),
    (r"^M3_block(\d+)\.dwconv\.", _counted("deep_fusion.{}.conv.")),
    (r"^M3_block(\d+)\.multi_modal_mamba_block\.", _counted("deep_fusion.{}.mixer.")),
]
# within the mixer of three branches: the fused tokens', and those of the guides b and c
_BRANCHES = ("", "_b", "_c")
_INPUTS = ("", "_extra1", "_extra2")
MIXER_KEYS = [
    (r"A_b_log$", "guide_A_log"),
    (r"in_proj(|_extra1|_extra2)\.(?=weight$)", lambda match: f"in_projs.{_INPUTS.index(match[1])}."),
    (
        r"(x_proj|dt_proj)(|_b|_c)\.(?=weight$|bias$)",
        lambda match: f"{match[1]}s.{_BRANCHES.index(match[2])}.",
    ),
]
# arguments of the constructor that change the result, and the only value with which published models were made
_ONLY = {"img_range": 1.0, "upscale": 1}


def config_from_official(arguments: dict[str, Any]) -> MambaDFuseConfig:
    """The config of an official `MambaDFuse(**arguments)`; the depths, heads and windows it takes have no effect.

    Raises:
        ValueError: an option that no published model uses is set.
    """
    for name, value in _ONLY.items():
        if arguments.get(name, value) != value:
            raise ValueError(f"mambadfuse: {name} is {arguments[name]!r}, expected {value}")
    if arguments.get("in_chans", 1) != 1:
        raise ValueError(f"mambadfuse: in_chans is {arguments['in_chans']!r}, expected 1")
    return MambaDFuseConfig(hidden_size=arguments.get("embed_dim", 60))


def published(state_dict: dict[str, torch.Tensor], preset: str | None) -> MambaDFuseConfig:
    """The config of the weights: all published models differ in width at most.

    Raises:
        ValueError: a name is given, as published models have none here, or the weights are none of MambaDFuse.
    """
    if preset is not None:
        raise ValueError(f"from_official: mambadfuse has no preset {preset!r}; expected the official arguments or none")
    norm = state_dict.get("patch_embed.norm.weight")
    if norm is None:
        raise ValueError("from_official('mambadfuse'): missing patch_embed.norm.weight")
    return MambaDFuseConfig(hidden_size=norm.shape[0])


def rename(
    state_dict: dict[str, torch.Tensor], config: MambaDFuseConfig, task: str | None = None
) -> dict[str, torch.Tensor]:
    """Official names to ours; names that match nothing are kept, so that loading reports them."""
    renamed, joined = {}, {}
    for official, tensor in state_dict.items():
        key = matched(official, KEYS)
        prefix, mixer, name = key.partition(".mixer.")
        if prefix.startswith("deep_fusion.") and mixer:
            key = f"{prefix}{mixer}{matched(name, MIXER_KEYS)}"
            if found := re.fullmatch(r"(?:conv1d(|_b|_c)\.(weight|bias)|D(|_b|_c))", name):
                place = f"{prefix}{mixer}{f'conv1d.{found[2]}' if found[2] else 'D'}"
                joined.setdefault(place, {})[found[1] or found[3] or ""] = (official, tensor)
                continue
        renamed[key] = tensor
    for place, parts in joined.items():
        if set(parts) != set(_BRANCHES):  # something is missing: what there is keeps its name
            renamed |= dict(parts.values())
            continue
        tensors = [parts[branch][1] for branch in _BRANCHES]
        renamed[place] = torch.stack(tensors) if place.endswith("D") else torch.cat(tensors)
    return renamed
