# SPDX-License-Identifier: Apache-2.0
"""Official FusionMamba checkpoints (millieXie/FusionMamba, VSSM_Fusion) -> our models."""

import re
from typing import Any

import torch

from vlmamba.models.fusionmamba.configuration_fusionmamba import PRESETS, FusionMambaConfig
from vlmamba.models.fusionmamba.modeling_fusionmamba import FusionMambaForImageFusion
from vlmamba.models.official_maps import rename_maps
from vlmamba.models.official_names import Target

MODELS = {"image-fusion": FusionMambaForImageFusion}
_SCAN = r"(x_proj_weight|dt_projs_weight|dt_projs_bias|A_logs|Ds)$"
# of the blocks of encoder and decoder
_BLOCK = {
    r"norm\.": "norm.",
    r"op\.(in_proj|conv2d|out_norm|out_proj)\.": r"mixer.scan_branch.\3.",
    rf"op\.{_SCAN}": r"mixer.scan_branch.scans.\3",
    r"self_attention_cross_channel\.": "mixer.attention.",
    r"conv_branch\.": "mixer.conv_branch.",
    r"se\.norm\.": "mixer.gate.norm.",
    r"se\.global_reduce\.": "mixer.gate.reduce.",
    r"se\.channel_select\.": "mixer.gate.expand.",
    r"norm2\.": "mlp_norm.",
    r"mlp\.": "mlp.",
}
# of the fusion of the maps that a stage begins with
_FUSION = {
    r"Cross_layer\.texture_enhance1\.": "enhancement.texture.",
    r"Cross_layer\.texture_enhance2\.": "enhancement.texture_x.",
    r"ln_1\.": "norm.",
    r"ln_2\.": "norm_x.",
    r"self_attention_cross\.in_proj1\.": "mixer.in_proj.",
    r"self_attention_cross\.in_proj2\.": "mixer.in_proj_x.",
    r"self_attention_cross\.(conv2d|out_norm|out_proj)\.": r"mixer.\2.",
    rf"self_attention_cross\.{_SCAN}": r"mixer.scans.\2",
    r"self_attention_cross_spatial\.": "attention.",
}


def _embeddings(number: int, ours: str) -> list[tuple[str, Target]]:
    return [
        (rf"^patch_embed{number}\.proj\.", f"{ours}.convolutions.0.conv."),
        (rf"^patch_embed{number}\.norm\.", f"{ours}.convolutions.0.norm."),
    ]


def _after_the_first(target: str) -> Target:
    """The parts between stages, which we count from the second stage on."""
    return lambda match: match.expand(target).replace("{}", str(int(match[1]) - 1))


_ALL_KEYS: list[tuple[str, Target]] = [
    *_embeddings(1, "embeddings"),
    *_embeddings(2, "embeddings_x"),
    *((rf"^layers\.(\d+)\.blocks\.(\d+)\.{part}", rf"stages.\1.blocks.\2.{ours}") for part, ours in _BLOCK.items()),
    *((rf"^layers_up\.(\d+)\.blocks\.(\d+)\.{part}", rf"decoder.\1.blocks.\2.{ours}") for part, ours in _BLOCK.items()),
    *((rf"^Cross_block\.(\d+)\.{part}", _after_the_first(f"fusions.{{}}.{ours}")) for part, ours in _FUSION.items()),
    (r"^layers\.(\d+)\.downsample\.", lambda match: f"stages.{int(match[1]) + 1}.downsample."),
    (r"^layers_up\.(\d+)\.upsample\.expand\.", _after_the_first("expansions.{}.expansion.")),
    (r"^layers_up\.(\d+)\.upsample\.norm\.", _after_the_first("expansions.{}.norm.")),
    (r"^final_up\.expand\.", "last_expansion.expansion."),
    (r"^final_up\.norm\.", "last_expansion.norm."),
    (r"^final_conv\.", "head."),
]
# no output depends on them: the fused map before the first stage is never read, nor is a layer in every fusion
_DEAD = re.compile(
    r"^Cross_block\.0\.(Cross_layer|ln_1|ln_2|self_attention_cross|self_attention_cross_spatial)\."
    r"|^Cross_block\.\d+\.Cross_layer\.Diff_enhance\.lastconv\.(weight|bias)$"
)


def config_from_official(arguments: dict[str, Any]) -> FusionMambaConfig:
    """The config of a `VSSM_Fusion(**arguments)`; what is left out takes the official default.

    Raises:
        ValueError: an option that has no counterpart is set.
    """
    get = arguments.get
    depths = list(get("depths", [2, 2, 9, 2]))
    widths = get("dims", [96, 192, 384, 768])
    widths = [widths * 2**i for i in range(len(depths))] if isinstance(widths, int) else list(widths)
    decoder = get("dims_decoder", widths[::-1])
    if list(decoder) != widths[::-1]:
        raise ValueError(f"fusionmamba: dims_decoder is {list(decoder)}, expected {widths[::-1]}, dims in reverse")
    if get("d_state", 16) != 16:
        raise ValueError(f"fusionmamba: d_state is {get('d_state')!r}, expected 16, which the published blocks have")
    return FusionMambaConfig(
        num_channels=get("in_chans", 1),
        patch_size=get("patch_size", 4),
        hidden_sizes=widths,
        depths=depths,
        decoder_depths=list(get("depths_decoder", [2, 9, 2, 2])),
        drop_path_rate=get("drop_path_rate", 0.0),
    )


def published(state_dict: dict[str, torch.Tensor], preset: str | None) -> FusionMambaConfig:
    """The config of the published model of that name, or the one that the weights' names and shapes tell.

    Raises:
        ValueError: an unknown name, or weights of another family.
    """
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(
                f"from_official: fusionmamba has no preset {preset!r}; expected one of {', '.join(PRESETS)}"
            )
        return FusionMambaConfig(**PRESETS[preset])
    names = {re.sub(r"^(module\.)+", "", key): tensor for key, tensor in state_dict.items()}
    depths = {}
    for side in ("layers", "layers_up"):
        found = {match[0] for key in names if (match := re.match(rf"{side}\.\d+\.blocks\.\d+\.", key))}
        stages = sorted(int(key.split(".")[1]) for key in found)
        depths[side] = [stages.count(i) for i in range(len(set(stages)))]
    patch = names.get("patch_embed1.proj.weight")
    if patch is None or patch.dim() != 4 or not all(depths.values()):
        raise ValueError("from_official('fusionmamba'): the weights are not those of a FusionMamba")
    return FusionMambaConfig(
        num_channels=patch.shape[1],
        patch_size=patch.shape[2],
        hidden_sizes=[len(patch) * 2**i for i in range(len(depths["layers"]))],
        depths=depths["layers"],
        decoder_depths=depths["layers_up"],
    )


def rename(state_dict: dict[str, torch.Tensor], config: FusionMambaConfig, task: str) -> dict[str, torch.Tensor]:
    """Official names and shapes to ours; names that match nothing are kept, so that loading reports them."""
    names = {re.sub(r"^(module\.)+", "", key): tensor for key, tensor in state_dict.items()}
    renamed = rename_maps({key: v for key, v in names.items() if not _DEAD.search(key)}, _ALL_KEYS, "")
    # the second image's own gate is never read
    return {key: v.chunk(2)[0] if key.endswith(".in_proj_x.weight") else v for key, v in renamed.items()}
