# SPDX-License-Identifier: Apache-2.0
"""MambaDFuse: shallow fusion by exchanged channels, deep fusion under guidance (arXiv:2404.08406)."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import can_return_tuple

from vlmamba.layers.fusion.channel_exchange import ChannelExchange
from vlmamba.layers.fusion.losses import GUIDED_LOSSES, guided_fusion_loss
from vlmamba.layers.fusion.multi_modal import MultiModalFusion, MultiModalMixer
from vlmamba.layers.maps import reset_convolution
from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.models.image_fusion import ImageFusionOutput, check_pair
from vlmamba.models.mambadfuse.configuration_mambadfuse import MambaDFuseConfig
from vlmamba.models.modeling_utils import KernelPreTrainedModel
from vlmamba.scans import get_scan

Tensor = torch.Tensor


def _sizes(config: MambaDFuseConfig) -> dict[str, int]:
    names = ("state_size", "conv_kernel", "expand", "time_step_rank")
    return {name: getattr(config, name) for name in names}


def _norm(config: MambaDFuseConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)


def _mixer(config: MambaDFuseConfig) -> VisionMixer:
    return VisionMixer(config.hidden_size, num_paths=1, **_sizes(config))


def _convolutions(*widths: int, slope: float) -> list[nn.Module]:
    """3 x 3 convolutions from width to width, a leaky ReLU after each."""
    return [
        module
        for inputs, outputs in zip(widths, widths[1:], strict=False)
        for module in (nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(slope))
    ]


class MambaDFuseLayer(GradientCheckpointingLayer):
    """mixer(norm(x)): what is to be added to the residual stream."""

    def __init__(self, config: MambaDFuseConfig):
        super().__init__()
        self.norm, self.mixer = _norm(config), _mixer(config)

    def forward(self, hidden_states: Tensor, paths: Tensor) -> Tensor:
        return self.mixer(self.norm(hidden_states), paths)


class MambaDFusePreTrainedModel(KernelPreTrainedModel):
    """Initialisation and loading of the MambaDFuse models."""

    config: MambaDFuseConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["MambaDFuseLayer", "ChannelExchange", "MultiModalFusion"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Mamba's of the mixers, PyTorch's of the rest."""
        if isinstance(module, nn.Conv2d):
            reset_convolution(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, VisionMixer):
            module.reset_parameters(depth=self.config.num_hidden_layers)
        elif isinstance(module, MultiModalMixer):
            module.reset_parameters(depth=self.config.num_fusion_layers)


class MambaDFuseForImageFusion(MambaDFusePreTrainedModel):
    """Fuses two registered images of one scene, of any size.

    The published models read the luminance of both, in [0, 1]: `pixel_values` is the infrared image, or CT and MRI;
    `pixel_values_x` the visible one, or PET and SPECT.

    Example:
        >>> model = MambaDFuseForImageFusion(MambaDFuseConfig())
        >>> fused = model(torch.rand(1, 1, 32, 48), torch.rand(1, 1, 32, 48)).fused
    """

    def __init__(self, config: MambaDFuseConfig):
        super().__init__(config)
        width, slope = config.hidden_size, config.negative_slope
        self.stem = nn.Sequential(*_convolutions(config.num_channels, width // 2, width, slope=slope))
        # one norm, used wherever maps become tokens
        self.norm = _norm(config)
        self.encoder = nn.ModuleList(MambaDFuseLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder_x = nn.ModuleList(MambaDFuseLayer(config) for _ in range(config.num_hidden_layers))
        self.exchange = nn.ModuleList(
            ChannelExchange(_norm(config), _norm(config), _mixer(config), _mixer(config))
            for _ in range(config.num_exchange_layers)
        )
        self.shallow_fusion = nn.Conv2d(2 * width, width, 3, padding=1)
        self.shallow_fusion_x = nn.Conv2d(2 * width, width, 3, padding=1)
        self.deep_fusion = nn.ModuleList(
            MultiModalFusion(width, eps=config.layer_norm_epsilon, **_sizes(config))
            for _ in range(config.num_fusion_layers)
        )
        self.reconstruction = nn.ModuleList(MambaDFuseLayer(config) for _ in range(config.num_reconstruction_layers))
        self.head = nn.Sequential(
            *_convolutions(width, width // 2, width // 4, slope=slope),
            nn.Conv2d(width // 4, config.num_channels, 3, padding=1),
        )
        self.post_init()

    def get_input_embeddings(self) -> None:
        """Images have no table of embeddings."""
        return None

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, pixel_values_x: Tensor, return_loss: bool | None = None, **kwargs: object
    ) -> ImageFusionOutput:
        """Fuse pairs of images.

        Args:
            pixel_values, pixel_values_x: `[B, num_channels, H, W]`, in [0, 1].
            return_loss: whether to give `loss`, the paper's (`guided_fusion_loss`, as `config.fusion_loss` says), which
                needs no labels.

        Returns:
            `fused` `[B, num_channels, H, W]`; not clamped, it may leave [0, 1] a little.

        Raises:
            ValueError: a shape or dtype is wrong.
        """
        check_pair(pixel_values, pixel_values_x, self.config.num_channels, self.config.num_channels)
        grid = tuple(pixel_values.shape[2:])
        paths = get_scan("raster").paths(*grid, device=pixel_values.device)
        x1, x2 = (self._tokens(self.stem(pixels)) for pixels in (pixel_values, pixel_values_x))
        x1, x2 = _sum(self.encoder, x1, paths), _sum(self.encoder_x, x2, paths)
        x1, x2 = self._exchanged(x1, x2, paths)

        x1, x2 = (v.transpose(1, 2).unflatten(2, grid) for v in (x1, x2))
        x1 = x1 + self.shallow_fusion(torch.cat([x1, x2], dim=1))
        x2 = x2 + self.shallow_fusion_x(torch.cat([x2, x1], dim=1))  # reads what x1 has become
        fused, x1, x2 = (self._tokens(v) for v in ((x1 + x2) / 2, x1, x2))

        fused = _last(self.deep_fusion, fused, grid, x2, x1)
        fused = _last(self.reconstruction, self.norm(fused), paths)
        fused, loss = self.head(fused.transpose(1, 2).unflatten(2, grid)), None
        if return_loss:
            options = GUIDED_LOSSES[self.config.fusion_loss]
            loss = guided_fusion_loss(fused, pixel_values, pixel_values_x, **options).total
        return ImageFusionOutput(loss=loss, fused=fused)

    def _tokens(self, maps: Tensor) -> Tensor:
        """`[B, C, H, W]` -> normed tokens `[B, H * W, C]`."""
        return self.norm(maps.flatten(2).transpose(1, 2))

    def _exchanged(self, x1: Tensor, x2: Tensor, paths: Tensor) -> tuple[Tensor, Tensor]:
        """What the last exchange gives; the streams end with it."""
        *layers, last = self.exchange
        for layer in layers:
            update1, update2 = layer(x1, x2, paths)
            x1, x2 = x1 + update1, x2 + update2
        return last(x1, x2, paths)


def _sum(layers: Iterable[nn.Module], stream: Tensor, *arguments: object) -> Tensor:
    """The residual stream after all layers."""
    for layer in layers:
        stream = stream + layer(stream, *arguments)
    return stream


def _last(layers: Iterable[nn.Module], stream: Tensor, *arguments: object) -> Tensor:
    """What the last layer would add to the residual stream, which is given up."""
    *layers, last = layers
    return last(_sum(layers, stream, *arguments), *arguments)
