# SPDX-License-Identifier: Apache-2.0
"""What transformers' tests ask about a model: a tiny config, and inputs for it."""

import copy

import torch
from transformers import PreTrainedConfig

BATCH = 3


class ModelTester:
    """A config and the inputs of one forward pass.

    Args:
        config: of the model.
        inputs: of one pass, with `BATCH` items.
        facts: further attributes that some tests read, as `num_hidden_layers`.
    """

    is_training = True
    batch_size = BATCH

    def __init__(self, config: PreTrainedConfig, inputs: dict[str, torch.Tensor], **facts: object):
        self.config, self.inputs = config, inputs
        self.__dict__.update(facts)

    def get_config(self) -> PreTrainedConfig:
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {name: tensor.clone() for name, tensor in self.inputs.items()}


def pixels(channels: int = 3, side: int = 16) -> torch.Tensor:
    """`[BATCH, channels, side, side]`."""
    return torch.randn(BATCH, channels, side, side, generator=torch.Generator().manual_seed(0))


def tokens(vocab_size: int, images: int = 0, length: int = 7, image_token: int = 4) -> torch.Tensor:
    """Random ids `[BATCH, images + length]`, the placeholders of an image first; none is a special token."""
    ids = torch.randint(7, vocab_size, (BATCH, length), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full((BATCH, images), image_token), ids], 1)
