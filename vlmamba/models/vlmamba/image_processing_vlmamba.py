# SPDX-License-Identifier: Apache-2.0
"""Pixels in: any image to a fixed square, or to tiles of it, with nothing cropped away."""

import torch
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from vlmamba.models.remote_code import PackagedImageProcessor
from vlmamba.models.vlmamba.tiling import cut, fitted_size, tile_grid


class VLMambaImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of `VLMambaImageProcessor` beside those of all image processors.

    Args:
        max_patches: largest number of tiles; the thumbnail comes in addition.
        use_thumbnail: the whole image in front of its tiles.
    """

    max_patches: int
    use_thumbnail: bool


class VLMambaImageProcessor(PackagedImageProcessor, TorchvisionBackend):
    """Resize the longer side, pad to the centre of a grey square, rescale and normalise.

    With `max_patches` above 1 a large image becomes several views: itself as a thumbnail, then its tiles, each of the
    square's size, row by row (`tile_grid` says how many). Options are named as in the image processors of InternVL,
    GOT-OCR 2, Llama 4 and others (`crop_to_patches` there is `max_patches` above 1 here).

    Args:
        size: {"height": int, "width": int} of the square; also per call.
        do_pad: keep the aspect ratio and pad, False stretches; also per call.
        pad_color: RGB in 0..255 of the padding.
        max_patches: largest number of tiles of an image, 1 for none; also per call.
        use_thumbnail: put the whole image in front of its tiles; also per call.

    Returns of a call:
        `pixel_values` `[views of all images, 3, height, width]`; with `max_patches` above 1 also `num_patches`
        `[images]`, the number of views of each image.
    """

    valid_kwargs = VLMambaImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_pad = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    pad_color = (127, 127, 127)
    max_patches = 1
    use_thumbnail = True

    def __init__(self, **kwargs: Unpack[VLMambaImageProcessorKwargs]):
        super().__init__(**kwargs)
        _check_max_patches(self.max_patches)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """How many views an image of height x width becomes; options of a call in `images_kwargs`."""
        options = {name: getattr(self, name) for name in ("size", "max_patches", "use_thumbnail")}
        options |= {name: value for name, value in (images_kwargs or {}).items() if name in options}
        size = self._standardize_kwargs(size=options["size"])["size"]
        _check_max_patches(options["max_patches"])
        rows, columns = tile_grid((height, width), (size.height, size.width), options["max_patches"])
        return rows * columns + (options["use_thumbnail"] and rows * columns > 1)

    def _validate_preprocess_kwargs(
        self, max_patches: int = 1, do_resize: bool | None = None, **kwargs: object
    ) -> None:
        super()._validate_preprocess_kwargs(do_resize=do_resize, **kwargs)
        _check_max_patches(max_patches)
        if max_patches > 1 and not do_resize:
            raise ValueError(f"max_patches is {max_patches} and do_resize False, expected True: tiles are resized")

    def _preprocess(
        self, images: list[torch.Tensor], return_tensors: str | None, max_patches: int, **options: object
    ) -> BatchFeature:
        for number, image in enumerate(images):
            if not image.numel():
                raise ValueError(f"image {number} has shape {tuple(image.shape)}, expected at least one pixel")
        views = [self.views(image, max_patches=max_patches, **options) for image in images]
        pixels = [self.view_to_pixels(view, **options) for of_image in views for view in of_image]
        # encoders are called with all that comes out, and know no such argument
        counts = {"num_patches": [len(of_image) for of_image in views]} if max_patches > 1 else {}
        return BatchFeature({"pixel_values": pixels, **counts}, tensor_type=return_tensors)

    def views(
        self,
        image: torch.Tensor,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_pad: bool | None,
        max_patches: int,
        use_thumbnail: bool,
        **kwargs: object,
    ) -> list[torch.Tensor]:
        """The views `[3, H, W]` of an image `[3, H, W]` in 0..255: itself alone, or in front of its tiles."""
        grid = tile_grid(image.shape[-2:], (size.height, size.width), max_patches)
        if grid == (1, 1):
            return [image]
        canvas = SizeDict(height=grid[0] * size.height, width=grid[1] * size.width)
        tiles = cut(self._fit(image, canvas, resample, do_pad), grid)
        return [image, *tiles] if use_thumbnail else tiles

    def view_to_pixels(
        self,
        view: torch.Tensor,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_pad: bool | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        **kwargs: object,
    ) -> torch.Tensor:
        """A view `[3, H, W]` in 0..255, of any size, as the encoder takes it: `[3, height, width]`."""
        if do_resize:
            view = self._fit(view, size, resample, do_pad)
        return self.rescale_and_normalize(view, do_rescale, rescale_factor, do_normalize, image_mean, image_std)

    def _fit(
        self, image: torch.Tensor, size: SizeDict, resample: PILImageResampling | int | None, do_pad: bool | None
    ) -> torch.Tensor:
        if not do_pad:
            return self.resize(image, size, resample)
        height, width = fitted_size(image.shape[-2:], (size.height, size.width))
        image = self.resize(image, SizeDict(height=height, width=width), resample)
        left, top = (size.width - width) // 2, (size.height - height) // 2
        right, bottom = size.width - width - left, size.height - height - top
        return tvF.pad(image, [left, top, right, bottom], fill=list(self.pad_color))


def _check_max_patches(value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"max_patches is {value!r}, expected a whole number of tiles, 1 or more")
