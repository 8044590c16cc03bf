# SPDX-License-Identifier: Apache-2.0
"""What the configs of all vision encoders have in common: the image, the stages, the checks."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from vlmamba.models.remote_code import PackagedConfig
from vlmamba.scans import get_scan


@strict
class VisionEncoderConfig(PackagedConfig, BackboneConfigMixin, PreTrainedConfig):
    """The part of a config that every vision encoder has; a family adds its own fields.

    A family says how many `num_stages` follow the stem, how wide they are and how many pixels apart their positions.

    Args:
        image_size: side of the input images, or (height, width), in pixels: the size of position embeddings.
        num_channels: image channels.
        layer_norm_epsilon: epsilon of the norms.
        drop_path_rate: stochastic depth of the last block; earlier ones rise linearly from 0.
        initializer_range: standard deviation of the truncated normal for embeddings and heads.
        out_features, out_indices: stages that a backbone gives, of "stem", "stage1", ...; the last by default.
    """

    base_config_key = "vision_config"

    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    layer_norm_epsilon: float = 1e-5
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def stage_names(self) -> list[str]:
        """Names of the stem and of every stage: they follow from `num_stages`, also when it is changed."""
        return ["stem", *(f"stage{i + 1}" for i in range(self.num_stages))]

    @stage_names.setter
    def stage_names(self, names: list[str]) -> None:
        pass  # saved configs may hold them

    @property
    def num_stages(self) -> int:
        """Stages after the stem."""
        raise NotImplementedError

    @property
    def stage_widths(self) -> list[int]:
        """Channels of the stem and of every stage."""
        raise NotImplementedError

    @property
    def stage_strides(self) -> list[float]:
        """Pixels from one position to the next, of the stem and of every stage."""
        raise NotImplementedError

    @property
    def pooled_size(self) -> int:
        """Width of `pooler_output`, which the classifier reads."""
        return self.hidden_size

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of `image_size`."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last stage's map of a height x width image."""
        raise NotImplementedError

    @property
    def least_side(self) -> int:
        """The shortest side of an image that leaves a position everywhere."""
        return next(side for side in range(1, 2**16) if min(self.grid(side, side)) > 0)

    def drop_path_rates(self, count: int) -> list[float]:
        """Rates of `count` blocks, from 0 to `drop_path_rate`."""
        return [self.drop_path_rate * i / max(count - 1, 1) for i in range(count)]

    def require_positive(self, *names: str) -> None:
        """Raise a `ValueError` that names the first field, or entry of a field, that is no positive integer."""
        for name in names:
            value = getattr(self, name)
            parts = {f"{name}[{i}]": v for i, v in enumerate(value)} if isinstance(value, list | tuple) else None
            for part, number in (parts if parts is not None else {name: value}).items():
                if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                    raise ValueError(f"{part} is {number!r}, expected a positive integer")

    def validate_image(self):
        """Part of the validation of strict configs: the image has two positive sides and channels."""
        self.require_positive("num_channels")
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"image_size is {self.image_size!r}, expected a side or (height, width)")
        if min(self.image_sides) < 1:
            raise ValueError(f"image_size is {self.image_size!r}, expected positive sides")


@strict
class TokenEncoderConfig(VisionEncoderConfig):
    """An encoder that keeps one width and one grid of patches: its stages are its layers.

    Args:
        hidden_size: width of the tokens.
        num_hidden_layers: number of blocks.
        patch_size: side of a patch, in pixels.
        pad_images: cover an image whose sides are no whole number of patches, with zeros at the bottom and right;
            else pixels there are left out that no whole patch has.
        apply_layernorm: a backbone norms its feature maps with the final norm.
        add_fpn: a backbone of four stages turns them into maps of 1/4, 1/2, 1 and 2 times the patch's stride, for heads
            that expect a pyramid.
    """

    hidden_size: int = 192
    num_hidden_layers: int = 24
    patch_size: int = 16
    pad_images: bool = True
    apply_layernorm: bool = True
    add_fpn: bool = False

    @property
    def num_stages(self) -> int:
        return self.num_hidden_layers

    @property
    def stage_widths(self) -> list[int]:
        return [self.hidden_size] * (self.num_hidden_layers + 1)

    @property
    def stage_strides(self) -> list[float]:
        return [self.step] * (self.num_hidden_layers + 1)

    @property
    def step(self) -> int:
        """Pixels from one patch to the next."""
        return self.patch_size

    def padded(self, side: int) -> int:
        """The side of an image of which whole patches cover all: zeros were added, or the rest left out."""
        if not self.pad_images:
            return side - (side - self.patch_size) % self.step
        return side + (self.patch_size - side) % self.step

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a height x width image."""
        return tuple((self.padded(side) - self.patch_size) // self.step + 1 for side in (height, width))

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches of an image of `image_size`."""
        return self.grid(*self.image_sides)

    @property
    def least_side(self) -> int:
        return self.patch_size

    def validate_tokens(self):
        """Part of the validation of strict configs: sizes are positive, and patches fit into the image."""
        self.require_positive("hidden_size", "num_hidden_layers", "patch_size")
        if min(self.image_sides) < self.patch_size:
            raise ValueError(f"image_size is {self.image_size!r}, expected at least patch_size {self.patch_size}")
        if self.add_fpn and len(self.out_features) != 4:
            raise ValueError(f"out_features has {len(self.out_features)} stages, expected 4 with add_fpn")


@strict
class MapEncoderConfig(VisionEncoderConfig):
    """An encoder in stages, each of half the map and more channels than the one before.

    Args:
        hidden_sizes: width of each stage.
        depths: number of blocks of each stage.
        patch_size: step between the positions of the first stage, in pixels.
    """

    hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 8, 2)
    patch_size: int = 4

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def stage_widths(self) -> list[int]:
        return [self.hidden_sizes[0], *self.hidden_sizes]

    @property
    def stage_strides(self) -> list[float]:
        return [self.patch_size, *(self.patch_size * 2**i for i in range(len(self.depths)))]

    @property
    def hidden_size(self) -> int:
        """Width of the last stage: of the tokens that the encoder gives."""
        return self.hidden_sizes[-1]

    @property
    def stage_drop_path_rates(self) -> list[list[float]]:
        """Rates of the blocks of every stage."""
        rates = iter(self.drop_path_rates(sum(self.depths)))
        return [[next(rates) for _ in range(depth)] for depth in self.depths]

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the first stage's map of a height x width image."""
        return height // self.patch_size, width // self.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        sides = self.patch_grid(height, width)
        for _ in self.depths[1:]:
            sides = tuple((side + 1) // 2 for side in sides)
        return sides

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the first stage's map of an image of `image_size`."""
        return self.patch_grid(*self.image_sides)

    def validate_maps(self):
        """Part of the validation of strict configs: sizes are positive, and there is a width for every depth."""
        self.require_positive("hidden_sizes", "depths", "patch_size")
        if not self.depths or len(self.depths) != len(self.hidden_sizes):
            raise ValueError(f"depths has {len(self.depths)} stages, expected {len(self.hidden_sizes)} as hidden_sizes")


def check_scan(scan: str | list[str] | tuple[str, ...]) -> None:
    """Raise a `ValueError` unless `scan` names orders of the rows of one grid."""
    kind, expected = get_scan(scan).kind, ("grid", "parts", "repeats")
    if kind not in expected:
        raise ValueError(f"scan is {scan!r}, of kind {kind!r}; expected one of kind {', '.join(expected)}")
