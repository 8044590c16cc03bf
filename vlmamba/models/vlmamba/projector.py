# SPDX-License-Identifier: Apache-2.0
"""The connector of a VLMamba model."""

import torch
from torch import nn

from vlmamba.layers.connectors import CONNECTORS
from vlmamba.models.vision_features import feature_width
from vlmamba.models.vlmamba.configuration_vlmamba import VLMambaConfig


class MultiModalProjector(nn.Module):
    """The connector that `config.projector_config` names, from the encoder's width to the language model's."""

    def __init__(self, config: VLMambaConfig):
        super().__init__()
        projector = config.projector_config
        self.connector = CONNECTORS[projector.projector_type](
            feature_width(config.vision_config),
            config.text_config.hidden_size,
            hidden_act=projector.hidden_act,
            eps=projector.layer_norm_epsilon,
            scan=projector.scan,
            shared=projector.shared_directions,
            average=projector.average_directions,
            state_size=projector.state_size,
            conv_kernel=projector.conv_kernel,
            expand=projector.expand,
            pool_size=projector.pool_size,
        )

    def forward(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.connector(features, grid)
