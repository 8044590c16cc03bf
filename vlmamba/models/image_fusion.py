# SPDX-License-Identifier: Apache-2.0
"""What models that fuse two images into one have in common."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass
class ImageFusionOutput(ModelOutput):
    """Output of a model that fuses two images.

    Attributes:
        loss: if the model was asked for it.
        fused: `[B, C, H, W]`, the fused images, in the range of the inputs.
    """

    loss: torch.Tensor | None = None
    fused: torch.Tensor | None = None


def check_pair(
    pixel_values: torch.Tensor, pixel_values_x: torch.Tensor, channels: int, channels_x: int, scale: int = 1
) -> None:
    """Raise a `ValueError` that names what is wrong with the shapes or dtypes of a pair of image batches.

    The sides of the second are `scale` times those of the first.
    """
    for name, pixels, wanted in (
        ("pixel_values", pixel_values, channels),
        ("pixel_values_x", pixel_values_x, channels_x),
    ):
        if not pixels.is_floating_point():
            raise ValueError(f"{name} has dtype {pixels.dtype}, expected floating point")
        if pixels.dim() != 4 or pixels.shape[1] != wanted or min(pixels.shape[2:]) < 1:
            raise ValueError(
                f"{name} has shape {tuple(pixels.shape)}, expected [batch, {wanted}, H, W] with positive H and W"
            )
    sides = tuple(scale * side for side in pixel_values.shape[2:])
    if pixel_values.shape[0] != pixel_values_x.shape[0] or sides != tuple(pixel_values_x.shape[2:]):
        wanted = "the same height and width" if scale == 1 else f"{scale} times the height and width"
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)} and pixel_values_x {tuple(pixel_values_x.shape)}, "
            f"expected as many images of {wanted}"
        )
