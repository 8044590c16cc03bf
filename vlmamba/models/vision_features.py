# SPDX-License-Identifier: Apache-2.0
"""Patch features of any vision model: ours, transformers', and timm's inside transformers' wrapper.

What a model of transformers with a ViT's fields gives follows from them. Of others (Swin, ConvNeXt, timm's, ...) it is
found out by calling the model without memory, on the device meta.
"""

import json
from functools import cache

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig

Grid = tuple[int, int]
_TIMM = "timm_wrapper"
_SIZE = 224  # pixels a side where a config says nothing


def vision_size(config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width of the images that a vision model is made for."""
    size = _timm_size(config) if config.model_type == _TIMM else getattr(config, "image_size", _SIZE)
    return (size, size) if isinstance(size, int) else tuple(size)


def feature_width(config: PreTrainedConfig) -> int:
    """Channels of a vision model's patch features."""
    if hasattr(config, "grid") or _has_plain_patches(config):
        return config.hidden_size
    return _measured(config, *vision_size(config))[1]


def patch_grid(config: PreTrainedConfig, height: int, width: int) -> Grid:
    """Rows and columns of patches that a vision model makes of a height x width image."""
    if hasattr(config, "grid"):
        return config.grid(height, width)
    if _has_plain_patches(config):
        patch = config.patch_size
        down, right = (patch, patch) if isinstance(patch, int) else patch
        return height // down, width // right
    return _measured(config, height, width)[0]


def check_vision_config(config: PreTrainedConfig, name: str) -> None:
    """Raise a `ValueError` that begins with `name` unless the config is of a vision model with patches."""
    try:
        patch_grid(config, *vision_size(config))
    # whatever a model that is none says to an image
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: a {config.model_type} model gives no features of patches ({reason})") from error


def _has_plain_patches(config: PreTrainedConfig) -> bool:
    """Whether all layers keep one grid of patches, as a ViT's; those with stages have `depths`."""
    fields = ("hidden_size", "image_size", "patch_size")
    return config.model_type != _TIMM and all(hasattr(config, f) for f in fields) and not hasattr(config, "depths")


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
    expected, width = grid[0] * grid[1], feature_width(encoder.config)
    features = _tokens(features, width)
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
    return encoder(pixel_values, return_dict=True, **options).hidden_states[0]


def _tokens(features: torch.Tensor, width: int) -> torch.Tensor:
    """A map, `[images, width, rows, columns]` or with the width last, row by row; tokens as they are."""
    if features.dim() != 4:
        return features
    return features.flatten(2).transpose(1, 2) if features.shape[1] == width else features.flatten(1, 2)


def _timm_size(config: PreTrainedConfig) -> Grid:
    model = _without_memory(config.model_type, _fields(config)).timm_model
    given = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return given or tuple(model.pretrained_cfg["input_size"][1:])


def _measured(config: PreTrainedConfig, height: int, width: int) -> tuple[Grid, int]:
    return _grid_and_width(config.model_type, _fields(config), height, width)


def _fields(config: PreTrainedConfig) -> str:
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


@cache
def _grid_and_width(kind: str, fields: str, height: int, width: int) -> tuple[Grid, int]:
    """Rows and columns, and channels, of what a model makes of an image."""
    model = _without_memory(kind, fields)
    pixels = torch.empty(1, getattr(model.config, "num_channels", 3), height, width, device="meta")
    with torch.no_grad():
        shape = model(pixels, return_dict=True).last_hidden_state.shape
    if len(shape) == 4:
        last = kind == _TIMM and shape[1] != model.timm_model.num_features
        return (tuple(shape[1:3]), shape[3]) if last else (tuple(shape[2:]), shape[1])
    tokens = shape[1] - (getattr(model.timm_model, "num_prefix_tokens", 0) if kind == _TIMM else 0)
    rows = round((tokens * height / width) ** 0.5)
    if not rows or tokens % rows:
        raise ValueError(f"{tokens} tokens of an image of {height} x {width} pixels are no grid")
    return (rows, tokens // rows), shape[2]


@cache
def _without_memory(kind: str, fields: str) -> nn.Module:
    with torch.device("meta"):
        return AutoModel.from_config(CONFIG_MAPPING[kind](**json.loads(fields))).eval()
