# SPDX-License-Identifier: Apache-2.0
"""FusionMamba: two images fused into one, by scans and learned differences (Xie et al., arXiv:2404.09498).

One encoder in stages reads both images; the maps that each stage reads of them are fused on the way to the decoder.
Maps are channel-last.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from vlmamba.layers.fusion.channel_attention import EfficientChannelAttention
from vlmamba.layers.fusion.descriptive_convolution import LearnableDescriptiveConvolution
from vlmamba.layers.fusion.dynamic_features import DynamicFusion, DynamicMixer, JointSS2D
from vlmamba.layers.fusion.losses import dynamic_fusion_loss
from vlmamba.layers.maps import MLP, MapBlock, PatchMerging, PatchStem, Stage, convolved, reset_convolution
from vlmamba.layers.ss2d import SS2D
from vlmamba.models.fusionmamba.configuration_fusionmamba import FusionMambaConfig
from vlmamba.models.image_fusion import ImageFusionOutput, check_pair
from vlmamba.models.modeling_utils import KernelPreTrainedModel


class PatchExpanding(nn.Module):
    """Every position to `step` x `step` of `outputs` channels, normed."""

    def __init__(self, inputs: int, outputs: int, step: int, eps: float):
        super().__init__()
        self.step = step
        self.expansion = nn.Linear(inputs, outputs * step**2, bias=False)
        self.norm = nn.LayerNorm(outputs, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, h, w, inputs]` -> `[B, step * h, step * w, outputs]`."""
        x = self.expansion(x).unflatten(-1, (self.step, self.step, -1))
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))


def _norm(config: FusionMambaConfig, channels: int) -> nn.Module:
    return nn.LayerNorm(channels, eps=config.layer_norm_epsilon)


def _scans(config: FusionMambaConfig) -> dict[str, object]:
    """The options of all scans."""
    names = ("scan", "state_size", "conv_kernel", "expand", "hidden_act")
    return {name: getattr(config, name) for name in names} | {"eps": config.layer_norm_epsilon}


def _blocks(config: FusionMambaConfig, channels: int, rates: list[float]) -> list[MapBlock]:
    return [
        MapBlock(
            _norm(config, channels),
            DynamicMixer(channels, **_scans(config)),
            _norm(config, channels),
            MLP(channels, config.mlp_ratio),
            rate,
        )
        for rate in rates
    ]


def _rates(depths: list[int], last: float) -> list[list[float]]:
    """Rates of stochastic depth that rise from 0 to `last`, by stages."""
    count = sum(depths)
    rates = iter([last * i / max(count - 1, 1) for i in range(count)])
    return [[next(rates) for _ in range(depth)] for depth in depths]


class FusionMambaPreTrainedModel(KernelPreTrainedModel):
    """Initialisation and loading shared by the FusionMamba models."""

    config: FusionMambaConfig
    base_model_prefix = "fusionmamba"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["MapBlock", "PatchStem", "DynamicFusion"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Of scans as published; the rest as PyTorch or, linear layers, of small random numbers."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            reset_convolution(module)
        elif isinstance(module, SS2D | JointSS2D):
            module.reset_parameters(std=std)
        elif isinstance(module, LearnableDescriptiveConvolution | EfficientChannelAttention):
            module.reset_parameters()


class FusionMambaForImageFusion(FusionMambaPreTrainedModel):
    """Two images of one scene to one, as of an infrared and a visible camera, or of CT and MRI.

    Example:
        >>> model = FusionMambaForImageFusion(FusionMambaConfig())
        >>> visible, infrared = torch.rand(2, 1, 1, 256, 256)
        >>> fused = model(visible, infrared).fused.clamp(0, 1)  # [1, 1, 256, 256]
    """

    def __init__(self, config: FusionMambaConfig):
        super().__init__(config)
        widths, eps = config.hidden_sizes, config.layer_norm_epsilon
        patch = [(config.num_channels, widths[0], config.patch_size, config.patch_size, 0)]
        self.embeddings = PatchStem(patch, [_norm(config, widths[0])])
        self.embeddings_x = PatchStem(patch, [_norm(config, widths[0])])
        rates = _rates(config.depths, config.drop_path_rate)
        self.stages = nn.ModuleList(
            Stage(
                PatchMerging(widths[i - 1], width, _norm(config, 4 * widths[i - 1])) if i else None,
                _blocks(config, width, rates[i]),
            )
            for i, width in enumerate(widths)
        )
        # of the maps that the stages after the first begin with
        self.fusions = nn.ModuleList(
            DynamicFusion(width, own_gates=config.own_gates, **_scans(config)) for width in widths[1:]
        )
        falling = [rates[::-1] for rates in _rates(config.decoder_depths[::-1], config.drop_path_rate)[::-1]]
        self.decoder = nn.ModuleList(
            Stage(None, _blocks(config, width, rates)) for width, rates in zip(widths[::-1], falling, strict=True)
        )
        # before the stages after the first
        self.expansions = nn.ModuleList(PatchExpanding(2 * width, width, 2, eps) for width in widths[-2::-1])
        self.last_expansion = PatchExpanding(widths[0], widths[0] // config.patch_size, config.patch_size, eps)
        self.head = nn.Conv2d(widths[0] // config.patch_size, config.num_channels, 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.convolutions[0].conv

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.convolutions[0].conv = value

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_values_x: torch.Tensor,
        return_loss: bool | None = None,
        **kwargs: object,
    ) -> ImageFusionOutput:
        """Fuse pairs of images.

        Args:
            pixel_values: `[B, num_channels, H, W]`, in 0 to 1: the visible light's, where one is.
            pixel_values_x: the same of the other modality.
            return_loss: whether to give `loss`, the paper's (`dynamic_fusion_loss`), which needs no labels; sides of
                at least 16.

        Returns:
            `fused` `[B, num_channels, H, W]`, which may reach out of 0 to 1 a little: clamp it to save it.
        """
        channels = self.config.num_channels
        check_pair(pixel_values, pixel_values_x, channels, channels)
        height, width = pixel_values.shape[2:]
        # sides of whole positions at all stages: what is added repeats the last row and column
        padding = (0, -width % self.config.stride, 0, -height % self.config.stride)
        images = [F.pad(pixels, padding, mode="replicate") for pixels in (pixel_values, pixel_values_x)]
        maps = torch.cat([self.embeddings(images[0]), self.embeddings_x(images[1])])
        fused = []
        for i, stage in enumerate(self.stages):
            if i:
                maps = stage.downsample(maps)
                fused.append(self.fusions[i - 1](*maps.chunk(2)))
            for block in stage.blocks:
                maps = block(maps)
        first, second = maps.chunk(2)
        x = first + second
        for i, stage in enumerate(self.decoder):
            x = stage(self.expansions[i - 1](x + fused[-i]) if i else x)
        x = convolved(self.head, self.last_expansion(x)).permute(0, 3, 1, 2)[..., :height, :width]
        x = x + self.config.image_weight * (pixel_values + pixel_values_x)
        loss = dynamic_fusion_loss(x, pixel_values, pixel_values_x).total if return_loss else None
        return ImageFusionOutput(loss=loss, fused=x)
