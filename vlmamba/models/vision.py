# SPDX-License-Identifier: Apache-2.0
"""What the vision encoders inherit: tokens or maps out of images, a classifier, a backbone."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from vlmamba.layers.embeddings import TokenEmbeddings
from vlmamba.layers.maps import MapEncoder, reset_convolution
from vlmamba.models.modeling_utils import KernelPreTrainedModel
from vlmamba.models.vision_config import VisionEncoderConfig

Grid = tuple[int, int]


@dataclass
class Encoded:
    """What an encoder made of images.

    Attributes:
        last: tokens `[B, L, D]` of the last layer, before the final norm.
        grid: rows and columns of the patches among them.
        kept: the states that were asked for, by their index: tokens and grid; 0 is before the first layer or stage.
    """

    last: torch.Tensor
    grid: Grid
    kept: dict[int, tuple[torch.Tensor, Grid]] = field(default_factory=dict)


class VisionPreTrainedModel(KernelPreTrainedModel):
    """A model that reads `pixel_values`; subclasses make their modules in `build`."""

    config: VisionEncoderConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: VisionEncoderConfig):
        super().__init__(config)
        self.build(config)
        self.post_init()

    def build(self, config: VisionEncoderConfig) -> None:
        """Make the modules."""
        raise NotImplementedError

    def check_pixels(self, pixel_values: torch.Tensor) -> None:
        """Raise a `ValueError` that names what is wrong with the images' shape or dtype."""
        config, shape = self.config, tuple(pixel_values.shape)
        if len(shape) == 4 and shape[1] == config.num_channels and min(shape[2:]) >= config.least_side:
            return
        raise ValueError(
            f"pixel_values has shape {shape}, expected [batch, {config.num_channels}, H, W] with H and W at least "
            f"{config.least_side}"
        )

    def set_input_embeddings(self, value: nn.Module) -> None:
        current = self.get_input_embeddings()
        self.set_submodule(next(name for name, module in self.named_modules() if module is current), value)

    def wanted_states(self, output_hidden_states: bool | int | Sequence[int] | None) -> Sequence[int]:
        """The indices of the states that are asked for: all, none, or those named, as transformers has it."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        indices = range(self.config.num_stages + 1)
        if isinstance(output_hidden_states, bool):
            return indices if output_hidden_states else ()
        named = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
        return [indices[i] for i in named if -len(indices) <= i < len(indices)]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TokenEmbeddings):
            module.reset_parameters(self.config.initializer_range)
        elif isinstance(module, nn.Conv2d):
            reset_convolution(module)


class VisionModel:
    """Mixed into an encoder: images to tokens and one vector.

    Subclasses give `encode`, `norm` and, where it differs, `pool`.
    """

    # further arguments of `forward` that a family's `encode` and `pool` take
    encode_arguments: tuple[str, ...] = ()

    def encode(self, pixel_values: torch.Tensor, keep: Container[int] = (), **arguments: object) -> Encoded:
        """Run the layers, keeping the states whose indices are in `keep`."""
        raise NotImplementedError

    def normed(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The final norm of tokens `[B, L, D]`, if there is one."""
        if isinstance(self.norm, nn.Identity):
            return tokens
        return self.norm(tokens.to(self.norm.weight.dtype))

    def pool(self, tokens: torch.Tensor, grid: Grid, **arguments: object) -> torch.Tensor:
        """Normed tokens `[B, L, D]` to `[B, config.pooled_size]`."""
        return tokens.mean(1)

    def patch_tokens(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The patches `[B, h * w, D]` of all tokens `[B, L, D]`, row by row."""
        return tokens

    def hidden_state(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """What is given of a state `[B, L, D]`."""
        return tokens

    def hidden_states(self, encoded: Encoded, wanted: Sequence[int]) -> tuple[torch.Tensor | None, ...] | None:
        """The states with these indices, None for the others; nothing if none is wanted."""
        if not wanted:
            return None
        indices = range(self.config.num_stages + 1)
        return tuple(self.hidden_state(*encoded.kept[i]) if i in wanted else None for i in indices)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: `[B, num_channels, H, W]`.
            output_hidden_states: also return the tokens before the first and after every layer (of an encoder with
                stages: of the stem and every stage), `[B, L, D]` each; or those of these indices, and None for others.

        Returns:
            `last_hidden_state` `[B, L, hidden_size]`, the normed tokens, row by row (their grid: `config.grid(H, W)`),
            with class tokens or registers where the encoder has any; `pooler_output` `[B, pooled_size]`.
        """
        self.check_pixels(pixel_values)
        keep = self.wanted_states(output_hidden_states)
        arguments = {name: kwargs[name] for name in self.encode_arguments if kwargs.get(name) is not None}
        encoded = self.encode(pixel_values, keep, **arguments)
        tokens = self.normed(encoded.last, encoded.grid)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=self.pool(tokens, encoded.grid, **arguments),
            hidden_states=self.hidden_states(encoded, keep),
        )


class TokenModel(VisionModel):
    """Layers over tokens of one grid: `embeddings`, `layers`, `norm`. Subclasses say in `step` how a layer is run."""

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    def step(self, index: int, tokens: torch.Tensor, grid: Grid, **arguments: object) -> tuple[torch.Tensor, Grid]:
        """Layer number `index` applied."""
        raise NotImplementedError

    def encode(self, pixel_values: torch.Tensor, keep: Container[int] = (), **arguments: object) -> Encoded:
        tokens, grid = self.embeddings(pixel_values)
        kept = {0: (tokens, grid)} if 0 in keep else {}
        for i in range(len(self.layers)):
            tokens, grid = self.step(i, tokens, grid, **arguments)
            if i + 1 in keep:
                kept[i + 1] = (tokens, grid)
        return Encoded(tokens, grid, kept)

    def patch_tokens(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        extra = set(self.embeddings.extra_positions(grid[0] * grid[1]))
        return tokens[:, [i for i in range(tokens.shape[1]) if i not in extra]] if extra else tokens


class MapModel(VisionModel):
    """Stages over shrinking channel-last maps: `encoder`, `norm`. Subclasses make those, in `build`."""

    encoder: MapEncoder

    def get_input_embeddings(self) -> nn.Module:
        return next(module for module in self.encoder.embeddings.modules() if isinstance(module, nn.Conv2d))

    def normed(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.norm(tokens.unflatten(1, grid)).flatten(1, 2)

    def encode(self, pixel_values: torch.Tensor, keep: Container[int] = ()) -> Encoded:
        states = self.encoder(pixel_values)
        return Encoded(*states[-1], {i: state for i, state in enumerate(states) if i in keep})


class ImageClassifier:
    """Mixed into a classifier: a linear layer on what an encoder pools; subclasses name the encoder's class."""

    encoder_class: type[VisionModel]

    def build(self, config: VisionEncoderConfig) -> None:
        setattr(self, self.base_model_prefix, self.encoder_class(config))
        self.classifier = nn.Linear(config.pooled_size, config.num_labels) if config.num_labels else nn.Identity()

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.get_input_embeddings()

    def logits(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        """`[B, num_labels]` of what the encoder gave."""
        return self.classifier(outputs.pooler_output)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: object,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: `[B, num_channels, H, W]`.
            labels: with them `loss` is returned: the cross-entropy of class indices `[B]`; or, if `config.problem_type`
                says so, that of every class by itself (`[B, num_labels]`, 0 to 1), or the squared error.
            output_hidden_states: as the encoder's.

        Returns:
            `logits` `[B, num_labels]`.
        """
        outputs = self.base_model(pixel_values, output_hidden_states=output_hidden_states, **kwargs)
        logits = self.logits(outputs)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class VisionBackbone(BackboneMixin):
    """Mixed into a family's encoder: the maps of the stages that `config.out_features` names, for transformers' heads.

    `channels` and `strides` (pixels from one position to the next) say what the maps are. `AutoBackbone.from_config`
    makes one. A folder's weights, a classifier's as well, are loaded by the family's own class, as in
    `VimBackbone.from_pretrained(folder, out_indices=[6, 12])`: `AutoBackbone.from_pretrained` asks the hub alone.
    """

    has_attentions = False

    def __init__(self, config: VisionEncoderConfig):
        super().__init__(config)
        self.num_features = config.stage_widths

    @property
    def strides(self) -> list[float]:
        """Pixels from one position of each feature map to the next."""
        return [dict(zip(self.stage_names, self.config.stage_strides, strict=True))[name] for name in self.out_features]

    def features(self, index: int, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The feature map `[B, h, w, D]` of the state `index`."""
        raise NotImplementedError

    def finish(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The last thing that is done to the maps `[B, D, h, w]`."""
        return maps

    def hidden_state(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.patch_tokens(tokens, grid).unflatten(1, grid).permute(0, 3, 1, 2)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        **kwargs: object,
    ) -> BackboneOutput:
        """`[B, num_channels, H, W]` -> `feature_maps`, `[B, D, h, w]` for every stage of `config.out_features`."""
        self.check_pixels(pixel_values)
        out = [i % len(self.stage_names) for i in self.out_indices]
        keep = self.wanted_states(output_hidden_states)
        encoded = self.encode(pixel_values, {*out, *keep})
        maps = [self.features(i, *encoded.kept[i]).permute(0, 3, 1, 2).contiguous() for i in out]
        return BackboneOutput(feature_maps=tuple(self.finish(maps)), hidden_states=self.hidden_states(encoded, keep))


class FeaturePyramid(nn.Module):
    """Four maps of one size to four that double in size downward: BEiT's and ViTDet's way for plain encoders."""

    def __init__(self, channels: int):
        super().__init__()
        self.up4 = nn.Sequential(_double(channels), nn.BatchNorm2d(channels), nn.GELU(), _double(channels))
        self.up2 = _double(channels)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        finest, fine, same, coarse = maps
        return [self.up4(finest), self.up2(fine), same, F.max_pool2d(coarse, 2, ceil_mode=True)]


def _double(channels: int) -> nn.Module:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2)


class TokenBackbone(VisionBackbone):
    """`VisionBackbone` of an encoder of one grid."""

    def build(self, config: VisionEncoderConfig) -> None:
        super().build(config)
        self.pyramid = FeaturePyramid(config.hidden_size) if config.add_fpn else None

    @property
    def strides(self) -> list[float]:
        factors = (0.25, 0.5, 1, 2) if self.config.add_fpn else (1,) * len(self.out_features)
        return [stride * factor for stride, factor in zip(super().strides, factors, strict=True)]

    def features(self, index: int, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        if self.config.apply_layernorm:
            tokens = self.normed(tokens, grid)
        return self.patch_tokens(tokens.to(self.get_input_embeddings().weight.dtype), grid).unflatten(1, grid)

    def finish(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return maps if self.pyramid is None else self.pyramid(maps)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.ConvTranspose2d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)


class MapBackbone(VisionBackbone):
    """`VisionBackbone` of an encoder with stages: every map that it gives has a norm of its own."""

    def build(self, config: VisionEncoderConfig) -> None:
        super().build(config)
        del self.norm  # of the encoder's output, which a backbone does not give
        widths = dict(zip(config.stage_names, config.stage_widths, strict=True))
        self.hidden_states_norms = nn.ModuleDict({name: self.make_norm(widths[name]) for name in config.out_features})

    def make_norm(self, channels: int) -> nn.Module:
        """The norm of a feature map of this width."""
        return nn.LayerNorm(channels, eps=self.config.layer_norm_epsilon)

    def features(self, index: int, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.hidden_states_norms[self.stage_names[index]](tokens.unflatten(1, grid))
