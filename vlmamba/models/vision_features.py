# SPDX-License-Identifier: Apache-2.0
"""Patch features of any vision model: ours, transformers' ViT-like ones, and timm's inside transformers' wrapper."""

import json
from functools import cache

import timm
import torch
from torch import nn
from transformers import PreTrainedConfig

Grid = tuple[int, int]
_TIMM = "timm_wrapper"


def vision_size(config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width of the images that a vision model is made for."""
    size = _timm_sizes(config)[1] if config.model_type == _TIMM else config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def feature_width(config: PreTrainedConfig) -> int:
    """Channels of a vision model's patch features."""
    return _timm_sizes(config)[0] if config.model_type == _TIMM else config.hidden_size


def patch_grid(config: PreTrainedConfig, height: int, width: int) -> Grid:
    """Rows and columns of patches that a vision model makes of a height x width image."""
    if hasattr(config, "grid"):
        return config.grid(height, width)
    patch = _timm_sizes(config)[2] if config.model_type == _TIMM else config.patch_size
    down, right = (patch, patch) if isinstance(patch, int) else patch
    return height // down, width // right


def check_vision_config(config: PreTrainedConfig, name: str) -> None:
    """Raise a `ValueError` that begins with `name` unless the config is of a vision model with patches."""
    if config.model_type == _TIMM:
        _timm_sizes(config)
        return
    missing = [field for field in ("hidden_size", "image_size", "patch_size") if not hasattr(config, field)]
    if missing:
        raise ValueError(
            f"{name}: a {config.model_type} config has no {', '.join(missing)}, expected a ViT-like encoder"
        )


def patch_features(encoder: nn.Module, pixel_values: torch.Tensor, layer: int = -1) -> torch.Tensor:
    """Patch features `[images, rows * columns, width]` of a layer, row by row; class and register tokens left out.

    Args:
        encoder: a vision model.
        pixel_values: `[images, channels, H, W]`.
        layer: -1 for the model's (normed) output, else an index into its hidden states: -2 is what the last one reads.

    Raises:
        ValueError: the encoder does not give a feature for every patch.
    """
    return features_and_states(encoder, pixel_values, layer, False)[0]


def features_and_states(
    encoder: nn.Module, pixel_values: torch.Tensor, layer: int, output_hidden_states: bool | None
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """`patch_features`, and the encoder's hidden states as it gives them, if they (or its config) are asked for."""
    grid = patch_grid(encoder.config, *pixel_values.shape[-2:])
    if output_hidden_states is None:
        output_hidden_states = encoder.config.output_hidden_states
    timm_model = encoder.config.model_type == _TIMM
    if timm_model and not output_hidden_states:
        features, states = _timm_features(encoder, pixel_values, layer), None
    else:
        options = {"do_pooling": False} if timm_model else {}
        wanted = output_hidden_states or layer != -1
        outputs = encoder(pixel_values, output_hidden_states=wanted, return_dict=True, **options)
        if layer != -1 and outputs.hidden_states is None:
            raise ValueError(
                f"the layer is {layer}, expected -1: the {encoder.config.model_type} encoder gives no others"
            )
        features = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
        states = outputs.hidden_states if output_hidden_states else None
        features = _tokens(features) if timm_model else features
    expected, width = grid[0] * grid[1], feature_width(encoder.config)
    if features.dim() != 3 or features.shape[1] < expected or features.shape[2] != width:
        kind, shape = encoder.config.model_type, tuple(features.shape)
        raise ValueError(
            f"layer {layer} of the {kind} encoder gives {shape} features, expected [images, {expected} or more, "
            f"{width}]"
        )
    if hasattr(encoder, "patch_tokens"):
        return encoder.patch_tokens(features, grid), states
    return features[:, features.shape[1] - expected :], states


def _timm_features(encoder: nn.Module, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
    if layer == -1:
        return encoder(pixel_values, do_pooling=False, return_dict=True).last_hidden_state
    # layers behind the one that is asked for are not run
    options = {"output_hidden_states": [layer], "stop_early": True, "do_pooling": False}
    return _tokens(encoder(pixel_values, return_dict=True, **options).hidden_states[0])


def _tokens(features: torch.Tensor) -> torch.Tensor:
    """A map `[images, width, rows, columns]` row by row."""
    return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


def _timm_sizes(config: PreTrainedConfig) -> tuple[int, Grid, Grid]:
    return _sizes_of(config.architecture, json.dumps(config.model_args or {}, sort_keys=True))


@cache
def _sizes_of(architecture: str, arguments: str) -> tuple[int, Grid, Grid]:
    """Width, image size and patch size of a timm model, which is built without memory to find out."""
    try:
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=0, **json.loads(arguments))
        return model.num_features, model.patch_embed.img_size, model.patch_embed.patch_size
    except (AttributeError, RuntimeError) as error:
        raise ValueError(f"vision_config: {architecture!r} is no ViT-like model of timm ({error})") from error
