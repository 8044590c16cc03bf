# SPDX-License-Identifier: Apache-2.0
"""Sigma: one encoder for two images of a scene, their maps fused and segmented (arXiv:2404.04256).

Maps are channel-last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoBackbone
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from vlmamba.layers.fusion.channel_aware import ChannelAwareBlock
from vlmamba.layers.fusion.concat_mamba import ConcatMamba
from vlmamba.layers.fusion.cross_mamba import CrossMamba
from vlmamba.layers.maps import LayerScale, reset_convolution
from vlmamba.layers.ss2d import SS2D
from vlmamba.models.image_fusion import check_pair
from vlmamba.models.modeling_utils import KernelPreTrainedModel
from vlmamba.models.sigma.configuration_sigma import SigmaConfig


def _resized(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`[B, h, w, D]` in another size, bilinearly."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    x = F.interpolate(x.permute(0, 3, 1, 2), size=tuple(size), mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


class SigmaFusion(nn.Module):
    """Two maps of one stage to one: each reads the other's states, then both are scanned together."""

    def __init__(self, config: SigmaConfig, channels: int):
        super().__init__()
        sizes = {
            "state_size": config.fusion_state_size,
            "expand": config.expand,
            "eps": config.layer_norm_epsilon,
        }
        self.cross = CrossMamba(channels, **sizes)
        self.concat = ConcatMamba(channels, **sizes)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Two maps `[B, h, w, D]` -> one."""
        return self.concat(*self.cross(first, second))


class PatchExpand(nn.Module):
    """Every position to 2 x 2 of `outputs` channels, and a norm."""

    def __init__(self, inputs: int, outputs: int, eps: float):
        super().__init__()
        self.expand = nn.Linear(inputs, 4 * outputs, bias=False)
        self.norm = nn.LayerNorm(outputs, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, inputs]` -> `[B, 2h, 2w, outputs]`."""
        x = self.expand(x).unflatten(-1, (2, 2, -1))  # [B, h, w, row, column, D]
        return self.norm(x.transpose(2, 3).flatten(1, 2).flatten(2, 3))


class Upsample(nn.Module):
    """Linear layers, each with a map of twice the sides after it, and a norm at the end."""

    def __init__(self, inputs: int, outputs: int, steps: int, eps: float):
        super().__init__()
        widths = [inputs] + [outputs] * steps
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.projections = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in pairs)
        self.norm = nn.LayerNorm(outputs, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, inputs]` -> `[B, 2 ** steps * h, 2 ** steps * w, outputs]`."""
        for project in self.projections:
            x = _resized(project(x), [2 * side for side in x.shape[1:3]])
        return self.norm(x)


class SigmaDecoder(nn.Module):
    """Maps from fine to coarse -> one of the finest map's width and four times its sides."""

    def __init__(self, config: SigmaConfig, widths: Sequence[int]):
        super().__init__()
        eps = config.layer_norm_epsilon
        self.expand = PatchExpand(widths[-1], widths[-2], eps)
        self.stages = nn.ModuleList(
            nn.ModuleList(_decoder_block(config, width, rate) for rate in rates)
            for width, rates in zip(widths[:-1], config.decoder_drop_path_rates, strict=True)
        )
        finer = zip(widths[1:-1], widths[:-2], strict=True)
        self.upsamples = nn.ModuleList(Upsample(*pair, steps=1, eps=eps) for pair in finer)
        self.norm = nn.LayerNorm(widths[0], eps=eps)
        self.final = Upsample(widths[0], widths[0], steps=2, eps=eps)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps `[B, h, w, D]`, each of its own h, w, D -> `[B, 4h, 4w, D]` of the first."""
        x = self.expand(maps[-1])
        for index in reversed(range(len(self.stages))):
            skip = maps[index]
            x = _resized(x, skip.shape[1:3]) + skip
            for block in self.stages[index]:
                x = block(x)
            if index:
                x = self.upsamples[index - 1](x)
        return self.final(self.norm(x))


def _decoder_block(config: SigmaConfig, channels: int, rate: float) -> ChannelAwareBlock:
    eps = config.layer_norm_epsilon
    mixer = SS2D(channels, state_size=config.decoder_state_size, expand=config.expand, eps=eps)
    return ChannelAwareBlock(channels, mixer, config.compression, config.reduction, rate, eps)


class SigmaPreTrainedModel(KernelPreTrainedModel):
    """Initialisation and loading shared by the Sigma models."""

    config: SigmaConfig
    base_model_prefix = "sigma"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["SigmaFusion", "ChannelAwareBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published initialisation of the fusion and the decoder; the encoder has its own."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, nn.Conv2d):
            reset_convolution(module)
        elif isinstance(module, SS2D):
            module.reset_parameters("mamba", std)
        elif isinstance(module, (CrossMamba, ConcatMamba)):
            module.reset_parameters(std)
        elif isinstance(module, LayerScale):
            module.reset_parameters()


class SigmaModel(SigmaPreTrainedModel):
    """Two images of one scene to the fused maps of every stage of the encoder.

    Example:
        >>> rgb, thermal = torch.randn(2, 1, 3, 480, 640)
        >>> maps = SigmaModel(SigmaConfig())(rgb, thermal).feature_maps  # [1, 96, 120, 160], ..., [1, 768, 15, 20]
    """

    def __init__(self, config: SigmaConfig):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        self.fusions = nn.ModuleList(SigmaFusion(config, width) for width in self.backbone.channels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, pixel_values_x: torch.Tensor, **kwargs: object) -> BackboneOutput:
        """Encode and fuse.

        Args:
            pixel_values: the colour images, `[B, num_channels, H, W]`.
            pixel_values_x: the images of the other modality (thermal, depth, ...), of the same shape: one channel is
                to be repeated.

        Returns:
            `feature_maps`: of every stage of the encoder the fused map `[B, D, h, w]`, from fine to coarse.

        Raises:
            ValueError: a shape or dtype is wrong.
        """
        return BackboneOutput(
            feature_maps=tuple(fused.permute(0, 3, 1, 2) for fused in self.fused(pixel_values, pixel_values_x))
        )

    def fused(self, pixel_values: torch.Tensor, pixel_values_x: torch.Tensor) -> list[torch.Tensor]:
        """The fused maps of every stage, channel-last."""
        check_pair(pixel_values, pixel_values_x, self.config.num_channels, self.config.num_channels)
        first, second = (
            [feature_map.permute(0, 2, 3, 1) for feature_map in self.backbone(pixels).feature_maps]
            for pixels in (pixel_values, pixel_values_x)
        )
        return [fusion(*maps) for fusion, *maps in zip(self.fusions, first, second, strict=True)]


class SigmaForSemanticSegmentation(SigmaPreTrainedModel):
    """Sigma with its decoder of channel-aware blocks: a class for every pixel of a pair of images.

    Example:
        >>> model = SigmaForSemanticSegmentation(SigmaConfig(num_labels=9))
        >>> classes = model(pixel_values=rgb, pixel_values_x=thermal).logits.argmax(1)  # [B, H, W]
    """

    def __init__(self, config: SigmaConfig):
        super().__init__(config)
        self.sigma = SigmaModel(config)
        widths = self.sigma.backbone.channels
        self.decoder = SigmaDecoder(config, widths)
        self.classifier = nn.Linear(widths[0], config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_values_x: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: object,
    ) -> SemanticSegmenterOutput:
        """Segment pairs of images.

        Args:
            pixel_values, pixel_values_x: as of `SigmaModel`.
            labels: integer `[B, H, W]`, the class of every pixel; `config.semantic_loss_ignore_index` for those that
                the loss leaves out.

        Returns:
            `logits` `[B, num_labels, H, W]`, and with labels the mean cross-entropy as `loss`.

        Raises:
            ValueError: a shape or dtype is wrong.
        """
        maps = self.sigma.fused(pixel_values, pixel_values_x)
        logits = _resized(self.classifier(self.decoder(maps)), pixel_values.shape[2:]).permute(0, 3, 1, 2)
        return SemanticSegmenterOutput(loss=None if labels is None else self._loss(logits, labels), logits=logits)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        expected = (logits.shape[0], *logits.shape[2:])
        if labels.shape != expected or labels.is_floating_point():
            raise ValueError(f"labels has shape {tuple(labels.shape)}, {labels.dtype}, expected integers of {expected}")
        return F.cross_entropy(logits.float(), labels.long(), ignore_index=self.config.semantic_loss_ignore_index)
