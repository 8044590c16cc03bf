# SPDX-License-Identifier: Apache-2.0
"""LocalVim: Vim whose layers each read four orders of their own, windows among them (arXiv:2403.09338)."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmamba.layers.blocks import MixerBlock
from vlmamba.layers.embeddings import Grid, TokenEmbeddings
from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.models.local_scans import ScanSearch
from vlmamba.models.localvim.configuration_localvim import LocalVimConfig
from vlmamba.models.rotary import RotaryTokens
from vlmamba.models.vision import ImageClassifier, TokenBackbone, TokenModel, VisionPreTrainedModel


def _norm(config: LocalVimConfig) -> nn.Module:
    kind = {"rms_norm": nn.RMSNorm, "layer_norm": nn.LayerNorm}[config.norm_type]
    return kind(config.hidden_size, eps=config.layer_norm_epsilon)


def _mixer(config: LocalVimConfig, index: int) -> VisionMixer:
    return VisionMixer(
        config.hidden_size,
        config.scan_of_layer(index).num_paths,
        state_size=config.state_size,
        conv_kernel=config.conv_kernel,
        expand=config.expand,
        time_step_rank=config.time_step_rank,
        merge=config.merge,
    )


class LocalVimEmbeddings(TokenEmbeddings):
    """Patches in raster order, a class token in their middle where there is one, positions added after."""

    def __init__(self, config: LocalVimConfig):
        super().__init__(
            config.num_channels,
            config.hidden_size,
            config.patch_size,
            config.patch_size,
            config.grid_size,
            int(config.class_token != "none"),
            config.use_position_embeddings,
            config.dropout,
            pad=config.pad_images,
        )
        self.class_token = config.class_token

    def extra_positions(self, num_patches: int) -> list[int]:
        return [num_patches // 2] if self.class_token == "middle" else []


class LocalVimPreTrainedModel(ScanSearch, VisionPreTrainedModel):
    """Initialisation and loading shared by the LocalVim models."""

    config: LocalVimConfig
    base_model_prefix = "localvim"
    _no_split_modules = ["MixerBlock", "LocalVimEmbeddings"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation: time steps begin near softplus(0)."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, VisionMixer):
            module.reset_parameters(depth=self.config.num_hidden_layers)
            init.trunc_normal_(module.in_proj.weight, std=std)
            for direction in module.directions:
                init.trunc_normal_(direction.x_proj.weight, std=std)
                init.trunc_normal_(direction.dt_proj.weight, std=std)
                init.zeros_(direction.dt_proj.bias)


class LocalVimModel(RotaryTokens, TokenModel, LocalVimPreTrainedModel):
    """The encoder: images to tokens. `pooler_output` is the class token, else what `config.pooling` says.

    Example:
        >>> tokens = LocalVimModel(LocalVimConfig())(torch.randn(1, 3, 224, 224)).last_hidden_state  # [1, 196, 192]
    """

    def build(self, config: LocalVimConfig) -> None:
        self.embeddings = LocalVimEmbeddings(config)
        self.layers = nn.ModuleList(
            MixerBlock(_norm(config), _mixer(config, i), rate, config.residual_in_fp32)
            for i, rate in enumerate(config.drop_path_rates(config.num_hidden_layers))
        )
        self.norm = _norm(config)

    def step(self, index: int, tokens: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Grid]:
        tokens = self.before_layer(index, tokens, grid)
        paths = self.config.scan_of_layer(index).paths(*grid, device=tokens.device)
        mixed = self.layers[index](tokens, paths, paths.shape[1] - tokens.shape[1])
        return self.after_layer(index, tokens, mixed, grid), grid

    def pool(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        at = self.embeddings.extra_positions(grid[0] * grid[1])
        if at:
            return tokens[:, at[0]]
        return tokens[:, -1] if self.config.pooling == "last" else tokens.mean(1)


class LocalVimForImageClassification(ImageClassifier, LocalVimPreTrainedModel):
    """LocalVim with a linear classifier on the class token or the pooled tokens."""

    encoder_class = LocalVimModel

    def logits(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        if self.config.class_token != "none" or self.config.pooling != "none":
            return super().logits(outputs)
        return self.classifier(outputs.last_hidden_state)


class LocalVimBackbone(TokenBackbone, LocalVimModel):
    """The patches after the layers that `config.out_features` names, as maps, for heads of segmentation and detection.

    Example:
        >>> config = LocalVimConfig(out_indices=[5, 10, 15, 20], add_fpn=True)
        >>> maps = LocalVimBackbone(config)(torch.randn(1, 3, 224, 224)).feature_maps  # 56 x 56, ..., 7 x 7
    """
