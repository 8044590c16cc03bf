# SPDX-License-Identifier: Apache-2.0
"""The pansharpening FusionMamba: a U-Net of two streams that meet in every stage (arXiv:2404.07932)."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from vlmamba.layers.fusion.dual_input import DualInputFusion
from vlmamba.layers.fusion.spectral_attention import SpectralAttention
from vlmamba.layers.maps import convolved, depthwise, reset_convolution
from vlmamba.models.image_fusion import ImageFusionOutput, check_pair
from vlmamba.models.modeling_utils import KernelPreTrainedModel
from vlmamba.models.psrben.configuration_psrben import PSRBenConfig

Tensor = torch.Tensor

# the two halvings of the maps
_DIVISOR = 4


def _options(config: PSRBenConfig) -> dict[str, int | float]:
    sizes = {name: getattr(config, name) for name in ("state_size", "conv_kernel", "expand")}
    return {**sizes, "eps": config.layer_norm_epsilon}


class PSRBenDownsample(nn.Module):
    """Every 2 x 2 positions to one, of twice the width."""

    def __init__(self, config: PSRBenConfig, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 2, 2)
        self.act = nn.LeakyReLU(config.negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(convolved(self.conv, x))


class PSRBenUpsample(nn.Module):
    """Every position to 2 x 2 of half the width; added to the map of that size, and convolved."""

    def __init__(self, config: PSRBenConfig, channels: int):
        super().__init__()
        self.expansion = nn.ConvTranspose2d(channels, channels // 2, 2, 2)
        self.depthwise = depthwise(channels // 2, 3, bias=True)
        self.pointwise = nn.Conv2d(channels // 2, channels // 2, 1)
        self.act = nn.LeakyReLU(config.negative_slope)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.act(convolved(self.expansion, x)) + skip
        return self.act(convolved(self.pointwise, convolved(self.depthwise, x)))


class PSRBenPreTrainedModel(KernelPreTrainedModel):
    """Initialisation and loading of the pansharpening FusionMamba."""

    config: PSRBenConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["DualInputFusion", "PSRBenDownsample", "PSRBenUpsample", "SpectralAttention"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Mamba's of the scans, PyTorch's of the rest."""
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            reset_convolution(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DualInputFusion | SpectralAttention):
            module.reset_parameters()


class PSRBenForImageFusion(PSRBenPreTrainedModel):
    """Sharpens a multispectral image by a panchromatic one of the same scene and of `scale_factor` times its sides.

    The published model reads radiances over 2047.

    Example:
        >>> model = PSRBenForImageFusion(PSRBenConfig())
        >>> fused = model(torch.rand(1, 8, 16, 16), torch.rand(1, 1, 64, 64)).fused  # [1, 8, 64, 64]
    """

    def __init__(self, config: PSRBenConfig):
        super().__init__(config)
        bands, width, options = config.num_channels, config.hidden_size, _options(config)
        self.upsample = nn.Conv2d(bands, bands * config.scale_factor**2, 3, padding=1, bias=False)
        self.stem = nn.Conv2d(bands, width, 3, padding=1)
        self.stem_x = nn.Conv2d(config.num_channels_x, width, 3, padding=1)
        self.act = nn.LeakyReLU(config.negative_slope)
        # both streams pass the same steps between the stages
        self.downsamples = nn.ModuleList(PSRBenDownsample(config, channels) for channels in (width, 2 * width))
        self.upsamples = nn.ModuleList(PSRBenUpsample(config, channels) for channels in (4 * width, 2 * width))
        widths = (width, 2 * width, 4 * width, 2 * width, width)
        self.stages = nn.ModuleList(
            DualInputFusion(channels, config.num_hidden_layers, final=i == len(widths) - 1, **options)
            for i, channels in enumerate(widths)
        )
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(config.negative_slope),
            nn.Conv2d(width, bands, 3, padding=1),
        )
        self.attention = SpectralAttention(width, **options)
        self.post_init()

    def get_input_embeddings(self) -> None:
        """Images have no table of embeddings."""
        return None

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, pixel_values_x: Tensor, labels: Tensor | None = None, **kwargs: object
    ) -> ImageFusionOutput:
        """Sharpen images.

        Args:
            pixel_values: `[B, num_channels, h, w]`, multispectral.
            pixel_values_x: `[B, num_channels_x, scale_factor * h, scale_factor * w]`, panchromatic.
            labels: what `fused` should be, of its shape.

        Returns:
            `fused` `[B, num_channels, scale_factor * h, scale_factor * w]`, in the range of the inputs; not clamped.
            With labels also `loss`, the mean absolute error, as in the paper.

        Raises:
            ValueError: a shape or dtype is wrong.
        """
        config = self.config
        check_pair(pixel_values, pixel_values_x, config.num_channels, config.num_channels_x, config.scale_factor)
        wanted = (pixel_values.shape[0], config.num_channels, *pixel_values_x.shape[2:])
        if labels is not None and tuple(labels.shape) != wanted:
            raise ValueError(f"labels has shape {tuple(labels.shape)}, expected {wanted}")
        upsampled = F.pixel_shuffle(self.upsample(pixel_values), config.scale_factor)
        maps = [self._map(self.stem, upsampled), self._map(self.stem_x, pixel_values_x)]
        skips = []
        for i, stage in enumerate(self.stages[:-1]):
            maps = stage(*maps)
            if i < len(self.downsamples):
                skips.append(maps)
                maps = [self.downsamples[i](v) for v in maps]
            else:
                step = self.upsamples[i - len(self.downsamples)]
                maps = [step(v, skip) for v, skip in zip(maps, skips.pop(), strict=True)]
        details = self.head(self.stages[-1](*maps).permute(0, 3, 1, 2))
        height, width = upsampled.shape[2:]
        fused = details[..., :height, :width] * self.attention(pixel_values) + upsampled
        return ImageFusionOutput(loss=None if labels is None else F.l1_loss(fused, labels), fused=fused)

    def _map(self, stem: nn.Conv2d, pixels: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, h, w, D]`, the last row and column repeated until the maps can be halved twice."""
        height, width = pixels.shape[2:]
        pixels = F.pad(pixels, (0, -width % _DIVISOR, 0, -height % _DIVISOR), mode="replicate")
        return self.act(stem(pixels)).permute(0, 2, 3, 1)
