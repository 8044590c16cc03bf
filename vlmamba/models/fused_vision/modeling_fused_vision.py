# SPDX-License-Identifier: Apache-2.0
"""Several vision models look at the same image; their patch features stand side by side."""

import torch
from torch import nn
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from vlmamba.models.fused_vision.configuration_fused_vision import FusedVisionConfig
from vlmamba.models.modeling_utils import KernelPreTrainedModel
from vlmamba.models.vision_features import patch_features


class FusedVisionModel(KernelPreTrainedModel):
    """Vision models side by side; their patch features are concatenated (Cobra, arXiv:2403.14520, section 3.1).

    Example:
        >>> model = FusedVisionModel(config)
        >>> features = model(pixel_values).last_hidden_state
    """

    config: FusedVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: FusedVisionConfig):
        super().__init__(config)
        self.encoders = nn.ModuleList(AutoModel.from_config(encoder) for encoder in config.encoders)
        self.post_init()

    def get_input_embeddings(self) -> None:
        """Images have no table of embeddings."""
        return None

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: object) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: `[B, num_channels, H, W]`: the image as each encoder wants it, one copy after the other.

        Returns:
            `last_hidden_state` `[B, rows * columns, hidden_size]`, row by row, and its mean as `pooler_output`.

        Raises:
            ValueError: the shape is wrong.
        """
        channels, shape = self.config.encoder_channels, tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != sum(channels):
            raise ValueError(
                f"pixel_values has shape {shape}, expected [batch, {sum(channels)}, H, W]: the image once for each of "
                f"{len(channels)} encoders"
            )
        copies = pixel_values.split(channels, dim=1)
        parts = zip(self.encoders, copies, self.config.feature_layers, strict=True)
        features = torch.cat([patch_features(*part) for part in parts], dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features.mean(1))
