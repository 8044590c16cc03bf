# SPDX-License-Identifier: Apache-2.0
"""Configuration of several vision models side by side."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig

from vlmamba.models.remote_code import PackagedConfig
from vlmamba.models.vision_features import check_vision_config, feature_width, patch_grid, vision_size

# Cobra's: DINOv2 with registers and SigLIP at one resolution, as timm has them
COBRA_ENCODERS = (
    {
        "model_type": "timm_wrapper",
        "architecture": "vit_large_patch14_reg4_dinov2",
        "model_args": {"img_size": 384},
        "do_pooling": False,
    },
    {
        "model_type": "timm_wrapper",
        "architecture": "vit_so400m_patch14_siglip_384",
        "model_args": {"img_size": 384},
        "do_pooling": False,
    },
)


@strict
class FusedVisionConfig(PackagedConfig, PreTrainedConfig):
    r"""Configuration of a `FusedVisionModel`, as the vision tower of Cobra (arXiv:2403.14520, section 3.1).

    Args:
        encoders: configs of vision models, or dicts with `model_type`: any of this library or of transformers,
            timm's (`timm_wrapper`) among them. They must make equally many patches of an image. Cobra's by default.
        feature_layers: for each encoder the index of the hidden states to read; -1 is its (normed) output, -2 what its
            last layer reads, is the default.

    Example:
        >>> config = FusedVisionConfig(
        ...     encoders=[{"model_type": "dinov2_with_registers"}, SiglipVisionConfig(patch_size=14)],
        ...     feature_layers=[-2, -2],
        ... )
    """

    model_type = "fused_vision"
    base_config_key = "vision_config"

    encoders: list[Any] | tuple[Any, ...] = COBRA_ENCODERS
    feature_layers: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs):
        self.encoders = [_config(encoder) for encoder in self.encoders]
        if self.feature_layers is None:
            self.feature_layers = [-2] * len(self.encoders)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As `PreTrainedConfig.to_dict`, with the encoders as dicts."""
        return super().to_dict() | {"encoders": [encoder.to_dict() for encoder in self.encoders]}

    @property
    def hidden_size(self) -> int:
        """Width of the concatenated features."""
        return sum(map(feature_width, self.encoders))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, the same for all."""
        return vision_size(self.encoders[0])

    @property
    def patch_size(self) -> int:
        """Pixels from one patch to the next."""
        return self.image_size[0] // self.grid(*self.image_size)[0]

    @property
    def num_channels(self) -> int:
        """Channels of `pixel_values`: each encoder has its own copy of the image, normed for it."""
        return sum(self.encoder_channels)

    @property
    def encoder_channels(self) -> list[int]:
        """Image channels of each encoder."""
        return [getattr(encoder, "num_channels", 3) for encoder in self.encoders]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a height x width image."""
        return patch_grid(self.encoders[0], height, width)

    def validate_encoders(self):
        """Part of the validation of strict configs: the features can stand side by side."""
        if not self.encoders or len(self.encoders) != len(self.feature_layers):
            raise ValueError(
                f"feature_layers has {len(self.feature_layers)} entries, expected one for each of the "
                f"{len(self.encoders)} encoders, at least one"
            )
        for index, encoder in enumerate(self.encoders):
            check_vision_config(encoder, f"encoders[{index}]")
        grids = [patch_grid(encoder, *self.image_size) for encoder in self.encoders]
        if len(set(grids)) > 1:
            raise ValueError(f"encoders make {grids} patches of {self.image_size} pixels, expected equally many")


def _config(encoder: PreTrainedConfig | dict[str, Any]) -> PreTrainedConfig:
    if isinstance(encoder, PreTrainedConfig):
        return encoder
    fields = dict(encoder)
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"encoders: model_type is {kind!r}, expected that of a vision model")
    return CONFIG_MAPPING[kind](**fields)
