# SPDX-License-Identifier: Apache-2.0
"""Pixels for several encoders side by side, each normed in its own way: Cobra's image transforms."""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import Unpack

from vlmamba.models.vlmamba.image_processing_vlmamba import VLMambaImageProcessor, VLMambaImageProcessorKwargs

RESIZE_STRATEGIES = ("resize-naive", "resize-crop", "letterbox")


class CobraImageProcessorKwargs(VLMambaImageProcessorKwargs, total=False):
    """Options of `CobraImageProcessor` beside those of `VLMambaImageProcessor`.

    Args:
        resize_strategy: one of `RESIZE_STRATEGIES`.
        crop_pct: for each encoder the part of the resized shorter side that its crop keeps.
    """

    resize_strategy: str
    crop_pct: list[float] | tuple[float, ...]


class CobraImageProcessor(VLMambaImageProcessor):
    """An image once for each encoder, normed as that one was trained, stacked on channels (arXiv:2403.14520).

    Bytes are resized exactly as PIL does, as the official transforms do. What is transparent lies over white, where the
    official script shows whatever colour is stored under it. Defaults are those of the published model: DINOv2, then
    SigLIP.

    Args:
        size: {"height": int, "width": int} of the pixels; also per call.
        resize_strategy: "resize-naive" stretches the image; "resize-crop" brings its shorter side to size / `crop_pct`
            and crops the centre; "letterbox" pads it to a square of the encoder's mean colour first and then does the
            same. Also per call.
        image_mean, image_std: three numbers for each encoder, one after the other.
        crop_pct: one number for each encoder.

    Returns of a call:
        `pixel_values` `[views of all images, 3 * encoders, height, width]`.

    Raises:
        ValueError: options contradict each other; the message names them.
    """

    valid_kwargs = CobraImageProcessorKwargs
    image_mean = [*IMAGENET_DEFAULT_MEAN, *IMAGENET_STANDARD_MEAN]
    image_std = [*IMAGENET_DEFAULT_STD, *IMAGENET_STANDARD_STD]
    size = {"height": 384, "width": 384}
    do_pad = False
    resize_strategy = "resize-naive"
    crop_pct = [1.0, 1.0]

    def __init__(self, **kwargs: Unpack[CobraImageProcessorKwargs]):
        super().__init__(**kwargs)
        _check(self.image_mean, self.image_std, self.crop_pct, self.resize_strategy, self.size)

    def _validate_preprocess_kwargs(
        self,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        crop_pct: tuple[float, ...],
        resize_strategy: str,
        size: SizeDict,
        **kwargs: object,
    ) -> None:
        super()._validate_preprocess_kwargs(image_mean=image_mean, image_std=image_std, size=size, **kwargs)
        _check(image_mean, image_std, crop_pct, resize_strategy, size)

    def view_to_pixels(
        self,
        view: torch.Tensor,
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        resize_strategy: str,
        crop_pct: tuple[float, ...],
        **kwargs: object,
    ) -> torch.Tensor:
        """A view `[3, H, W]` in 0..255, of any size, as the encoders take it: `[3 * encoders, height, width]`."""
        copies = [view] * len(crop_pct)
        if do_resize and resize_strategy == "resize-naive":
            copies = [self.resize(view, size, resample)] * len(crop_pct)
        elif do_resize:
            if resize_strategy == "letterbox":
                copies = [_squared(view, image_mean[3 * index :][:3]) for index in range(len(crop_pct))]
            copies = [self._cropped(copy, size, resample, part) for copy, part in zip(copies, crop_pct, strict=True)]
        pixels = torch.cat(copies)
        return self.rescale_and_normalize(pixels, do_rescale, rescale_factor, do_normalize, image_mean, image_std)

    def resize(
        self,
        image: torch.Tensor,
        size: SizeDict,
        resample: PILImageResampling | int | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """`[3, H, W]` to height x width: bytes on the CPU by PIL, anything else by torchvision."""
        if image.dtype != torch.uint8 or image.device.type != "cpu" or not isinstance(resample, int):
            return super().resize(image, size, resample, **kwargs)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        resized = picture.resize((size.width, size.height), resample)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def _cropped(
        self, image: torch.Tensor, size: SizeDict, resample: PILImageResampling | int | None, part: float
    ) -> torch.Tensor:
        """The shorter side resized, the centre cropped; sizes are rounded as timm and torchvision do."""
        shorter, sides = int(size.height / part), image.shape[-2:]
        height, width = (int(shorter * side / min(sides)) for side in sides)
        resized = self.resize(image, SizeDict(height=height, width=width), resample)
        return tvF.center_crop(resized, [size.height, size.width])


def _squared(image: torch.Tensor, mean: tuple[float, ...]) -> torch.Tensor:
    """Padded by whole pixels on both sides: one that is odd short of a square stays so, as in the official code."""
    height, width = image.shape[-2:]
    down, right = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    return tvF.pad(image, [right, down, right, down], fill=[int(value * 255) for value in mean])


def _check(
    image_mean: tuple[float, ...],
    image_std: tuple[float, ...],
    crop_pct: tuple[float, ...],
    resize_strategy: str,
    size: SizeDict,
) -> None:
    if not len(image_mean) == len(image_std) == 3 * len(crop_pct):
        raise ValueError(
            f"image_mean has {len(image_mean)} numbers, image_std {len(image_std)} and crop_pct {len(crop_pct)}, "
            "expected three, three and one for each encoder"
        )
    if resize_strategy not in RESIZE_STRATEGIES:
        raise ValueError(f"resize_strategy is {resize_strategy!r}, expected one of {', '.join(RESIZE_STRATEGIES)}")
    if resize_strategy != "resize-naive" and size.height != size.width:
        raise ValueError(
            f"size is {size.height} x {size.width}, expected a square for resize_strategy {resize_strategy!r}"
        )
