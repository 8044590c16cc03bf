# SPDX-License-Identifier: Apache-2.0
"""Pixels in: any image to a fixed square, with nothing cropped away."""

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


class VLMambaImageProcessor(TorchvisionBackend):
    """Resize the longer side, pad to the centre of a grey square, rescale and normalise.

    Args:
        size: {"height": int, "width": int} of the square; also per call.
        do_pad: keep the aspect ratio and pad, False stretches; also per call.
        pad_color: RGB in 0..255 of the padding.

    Returns of a call:
        `pixel_values` `[images, 3, height, width]`.
    """

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

    def _preprocess(self, images: list[torch.Tensor], return_tensors: str | None, **options: object) -> BatchFeature:
        pixels = [self.view_to_pixels(view, **options) for image in images for view in self.views(image, **options)]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def views(self, image: torch.Tensor, **options: object) -> list[torch.Tensor]:
        """The views of an image that the encoder sees, each a `[3, H, W]` of any size.

        Args:
            image: `[3, H, W]` in 0..255.
            options: of the call.
        """
        return [image]

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
            view = self._fit(view, size, resample) if do_pad else self.resize(view, size, resample)
        return self.rescale_and_normalize(view, do_rescale, rescale_factor, do_normalize, image_mean, image_std)

    def _fit(self, image: torch.Tensor, size: SizeDict, resample: PILImageResampling | int | None) -> torch.Tensor:
        height, width = image.shape[-2:]
        scale = min(size.height / height, size.width / width)
        # a 10000 x 20 image keeps at least one row
        fitted = SizeDict(height=max(1, round(height * scale)), width=max(1, round(width * scale)))
        image = self.resize(image, fitted, resample)
        left, top = (size.width - fitted.width) // 2, (size.height - fitted.height) // 2
        right, bottom = size.width - fitted.width - left, size.height - fitted.height - top
        return tvF.pad(image, [left, top, right, bottom], fill=list(self.pad_color))
