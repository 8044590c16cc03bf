# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints of the pansharpening FusionMamba (PSRben/FusionMamba, class U2Net) -> PSRBenForImageFusion."""

import math
from typing import Any

import torch

from vlmamba.models.official_names import Target, matched
from vlmamba.models.psrben.configuration_psrben import PSRBenConfig
from vlmamba.models.psrben.modeling_psrben import PSRBenForImageFusion

MODELS = {"image-fusion": PSRBenForImageFusion}
# branches along rows, rows reversed, columns, columns reversed -> the places of these orders in our scan
_ORDERS = {"": 0, "_b": 2, "_c": 1, "_d": 3}
# of the scan along the bands: there and back
_BANDS = {"": 0, "_b": 1}
# the spectral stream is our first, the spatial one our second
_STREAMS = {"spe": "", "spa": "_x"}

# official key -> ours
KEYS: list[tuple[str, Target]] = [
    (r"^upsample\.upsamle\.0\.", "upsample."),
    (r"^raise_ms_dim\.0\.", "stem."),
    (r"^raise_pan_dim\.0\.", "stem_x."),
    (r"^to_hrms\.", "head."),
    (r"^spe_attn\.block\.0\.", "attention.in_proj."),
    (r"^spe_attn\.block\.1\.", "attention.norm."),
    (r"^spe_attn\.block\.2\.", "attention.mixer."),
    (r"^spe_attn\.block\.3\.", "attention.out_proj."),
    (r"^stage([01])\.sample\.down\.0\.", r"downsamples.\1.conv."),
    (r"^stage([23])\.sample\.up\.0\.", lambda match: f"upsamples.{int(match[1]) - 2}.expansion."),
    (r"^stage([23])\.sample\.conv\.0\.", lambda match: f"upsamples.{int(match[1]) - 2}.depthwise."),
    (r"^stage([23])\.sample\.conv\.1\.", lambda match: f"upsamples.{int(match[1]) - 2}.pointwise."),
    (r"^stage([0-3])\.fm\.", r"stages.\1."),
    (r"^stage4\.", "stages.4."),
]
BLOCK_KEYS: list[tuple[str, Target]] = [
    (r"\b(spa|spe)_mamba_layers\.(\d+)\.block\.", lambda match: f"layers{_STREAMS[match[1]]}.{match[2]}.mixer."),
    (r"\b(spa|spe)_mamba_layers\.", lambda match: f"layers{_STREAMS[match[1]]}."),
    (r"\b(spa|spe)_cross_mamba\.norm0\.", lambda match: f"cross{_STREAMS[match[1]]}.norm."),
    (r"\b(spa|spe)_cross_mamba\.norm1\.", lambda match: f"cross{_STREAMS[match[1]]}.norm_x."),
    (r"\b(spa|spe)_cross_mamba\.block\.", lambda match: f"cross{_STREAMS[match[1]]}.mixer."),
]


def _mixer_keys(orders: dict[str, int]) -> list[tuple[str, Target]]:
    suffix = "|".join(orders)
    return [
        (r"\bmixer\.in_proj_b\.", "mixer.in_proj_x."),
        (rf"\bmixer\.A({suffix})_log$", lambda match: f"mixer.directions.{orders[match[1]]}.A_log"),
        (rf"\bmixer\.D({suffix})$", lambda match: f"mixer.directions.{orders[match[1]]}.D"),
        (
            rf"\bmixer\.(conv1d|x_proj|dt_proj)({suffix})\.(?=weight$|bias$)",
            lambda match: f"mixer.directions.{orders[match[2]]}.{match[1]}.",
        ),
    ]


def config_from_official(arguments: dict[str, Any]) -> PSRBenConfig:
    """The config of an official `U2Net(**arguments)`; the H and W it takes are no part of ours, which takes any.

    What is left out is as of the weights published for WorldView-3.
    """
    ours = {"dim": "hidden_size", "pan_dim": "num_channels_x", "ms_dim": "num_channels", "scale": "scale_factor"}
    return PSRBenConfig(**{ours[name]: value for name, value in arguments.items() if name in ours})


def published(state_dict: dict[str, torch.Tensor], preset: str | None) -> PSRBenConfig:
    """The config that the weights' shapes tell.

    Raises:
        ValueError: a name is given, as published models have none here, or the weights are of another model.
    """
    if preset is not None:
        raise ValueError(f"from_official: psrben has no preset {preset!r}; expected the official arguments or none")
    names = ("raise_ms_dim.0.weight", "raise_pan_dim.0.weight", "upsample.upsamle.0.weight")
    if missing := [name for name in names if name not in state_dict]:
        raise ValueError(f"from_official('psrben'): missing {', '.join(missing)}")
    spectral, spatial, upsample = (state_dict[name].shape for name in names)
    return PSRBenConfig(
        num_channels=spectral[1],
        num_channels_x=spatial[1],
        hidden_size=spectral[0],
        scale_factor=math.isqrt(upsample[0] // upsample[1]),
    )


def rename(
    state_dict: dict[str, torch.Tensor], config: PSRBenConfig, task: str | None = None
) -> dict[str, torch.Tensor]:
    """Official names to ours; names that match nothing are kept, so that loading reports them."""
    renamed = {}
    for official, tensor in state_dict.items():
        key = matched(matched(official, KEYS), BLOCK_KEYS)
        orders = _BANDS if key.startswith("attention.") else _ORDERS
        renamed[matched(key, _mixer_keys(orders))] = tensor
    return renamed
