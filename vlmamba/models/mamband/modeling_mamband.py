# SPDX-License-Identifier: Apache-2.0
"""Mamba-ND on images: plain Mamba blocks that take turns in the orders of the patches (arXiv:2402.05892)."""

import math

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmamba.layers.embeddings import Grid, TokenEmbeddings
from vlmamba.layers.maps import PatchMerging, reset_convolution
from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.models.mamband.configuration_mamband import MambaNDConfig
from vlmamba.models.vision import ImageClassifier, TokenBackbone, TokenModel, VisionPreTrainedModel

_CLASSIFIER_STD = 2e-5


class MambaNDEmbeddings(TokenEmbeddings):
    """Patches in raster order, positions added."""

    def __init__(self, config: MambaNDConfig):
        super().__init__(
            config.num_channels,
            config.hidden_size,
            config.patch_size,
            config.patch_size,
            config.grid_size,
            dropout=config.dropout,
            interpolation=config.interpolation,
            pad=config.pad_images,
        )

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """PyTorch's initialisation for the convolution, truncated normal of `std` for the positions."""
        super().reset_parameters(std)
        reset_convolution(self.patch_embeddings)


class MambaNDBlock(GradientCheckpointingLayer):
    """norm(x) + drop_path(mixer(norm(x))), then 2 x 2 tokens to one where the map shrinks.

    The residual is taken after the norm: there is no stream that no norm has touched.
    """

    def __init__(self, config: MambaNDConfig, drop_path: float, downsample: bool):
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.mixer = VisionMixer(
            width,
            num_paths=1,
            state_size=config.state_size,
            conv_kernel=config.conv_kernel,
            expand=config.expand,
            time_step_rank=config.time_step_rank,
        )
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.downsample = None
        if downsample:
            self.downsample = PatchMerging(width, width, nn.LayerNorm(4 * width, eps=config.layer_norm_epsilon))

    def forward(self, hidden_states: torch.Tensor, paths: torch.Tensor, grid: Grid) -> torch.Tensor:
        normed = self.norm(hidden_states)
        mixed = normed + self.drop_path(self.mixer(normed, paths))
        return mixed if self.downsample is None else self.downsample(mixed.unflatten(1, grid)).flatten(1, 2)


class MambaNDPreTrainedModel(VisionPreTrainedModel):
    """Initialisation and loading shared by the Mamba-ND models."""

    config: MambaNDConfig
    base_model_prefix = "mamband"
    _no_split_modules = ["MambaNDBlock", "MambaNDEmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation: Mamba's own for the mixers, PyTorch's for the patch merging."""
        super()._init_weights(module)
        if isinstance(module, VisionMixer):
            module.reset_parameters()
        elif isinstance(module, PatchMerging):
            init.kaiming_uniform_(module.reduction.weight, a=math.sqrt(5))


class MambaNDModel(TokenModel, MambaNDPreTrainedModel):
    """The encoder: images to tokens, a quarter of the patches. `pooler_output` is their mean, normed again.

    Example:
        >>> tokens = MambaNDModel(MambaNDConfig())(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 196, 384]
    """

    def build(self, config: MambaNDConfig) -> None:
        width, eps = config.hidden_size, config.final_norm_epsilon
        self.embeddings = MambaNDEmbeddings(config)
        for i in range(config.num_hidden_layers):
            config.scan_of_layer(i)  # made before `torch.compile` may ask for it
        self.layers = nn.ModuleList(
            MambaNDBlock(config, rate, i in config.downsample_layers)
            for i, rate in enumerate(config.drop_path_rates(config.num_hidden_layers))
        )
        self.norm = nn.LayerNorm(width, eps=eps) if config.use_final_norm else nn.Identity()
        self.pooled_norm = nn.LayerNorm(width, eps=eps)

    def step(self, index: int, tokens: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Grid]:
        layer = self.layers[index]
        paths = self.config.scan_of_layer(index).paths(*grid, device=tokens.device)
        after = grid if layer.downsample is None else tuple((side + 1) // 2 for side in grid)
        return layer(tokens, paths, grid), after

    def pool(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.pooled_norm(tokens.mean(1))


class MambaNDForImageClassification(ImageClassifier, MambaNDPreTrainedModel):
    """Mamba-ND with a linear classifier on the mean over the tokens."""

    encoder_class = MambaNDModel

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.classifier and self.config.num_labels:
            init.trunc_normal_(module.weight, std=_CLASSIFIER_STD)


class MambaNDBackbone(TokenBackbone, MambaNDModel):
    """The tokens after the layers that `config.out_features` names, as maps, for heads of segmentation and detection.

    Example:
        >>> config = MambaNDConfig(out_indices=[9, 24])
        >>> maps = MambaNDBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # 28 x 28, 14 x 14
    """

    def build(self, config: MambaNDConfig) -> None:
        super().build(config)
        del self.pooled_norm  # of the pooled vector, which a backbone does not give
