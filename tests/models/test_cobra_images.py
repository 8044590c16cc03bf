# SPDX-License-Identifier: Apache-2.0
"""Cobra's image transforms: the recorded ones, and the official composition of timm's at other sizes."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms import Compose, Pad, Resize
from transformers import AutoImageProcessor

from tests import golden
from tests.close import assert_close
from vlmamba import CobraImageProcessor
from vlmamba.models.vlmamba.image_processing_cobra import RESIZE_STRATEGIES

DINO = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_pct": 1.0}
CLIP = {"mean": (0.481, 0.458, 0.408), "std": (0.269, 0.261, 0.276), "crop_pct": 0.9}
SIZE = 42


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def processor(strategy: str, *encoders: dict, **options) -> CobraImageProcessor:
    joined = {f"image_{name}": [v for encoder in encoders for v in encoder[name]] for name in ("mean", "std")}
    return CobraImageProcessor(
        size={"height": SIZE, "width": SIZE},
        resize_strategy=strategy,
        crop_pct=[encoder["crop_pct"] for encoder in encoders],
        **joined,
        **options,
    )


def official(image: Image.Image, strategy: str, encoder: dict) -> torch.Tensor:
    """What TimmViTBackbone (cobra/models/backbones/vision/base_vision.py) composes for an encoder."""
    steps = timm.data.create_transform(
        (3, SIZE, SIZE), is_training=False, interpolation="bicubic", **encoder
    ).transforms
    if strategy == "resize-naive":
        steps = [Resize((SIZE, SIZE), interpolation=steps[0].interpolation), *steps[1:]]
    elif strategy == "letterbox":
        longer = max(image.size)
        border = [int((longer - side) / 2) for side in image.size]
        steps = [Pad(border, fill=tuple(int(value * 255) for value in encoder["mean"])), *steps]
    return Compose(steps)(image)


@pytest.mark.parametrize("name", golden.names("cobra-dinosiglip"))
@pytest.mark.parametrize("strategy", RESIZE_STRATEGIES)
def test_official_pixels_are_met(name, strategy):
    fixture = golden.load(name)
    side = fixture.arguments["size"]
    prepare = CobraImageProcessor(size={"height": side, "width": side}, resize_strategy=strategy)
    image = fixture.io["prep.image_uint8_hwc"].numpy()
    for given in (image, Image.fromarray(image)):
        dino, siglip = prepare(given, return_tensors="pt")["pixel_values"][0].split(3)
        fixture.check(dino, f"prep.{strategy}.dino")
        fixture.check(siglip, f"prep.{strategy}.siglip")


@pytest.mark.parametrize("size", [(42, 42), (50, 31), (31, 50), (7, 90), (300, 200), (42, 41)])
@pytest.mark.parametrize("strategy", RESIZE_STRATEGIES)
def test_every_size_is_prepared_as_timm_does(strategy, size):
    image = picture(*size)
    ours = processor(strategy, DINO, CLIP, DINO)(image, return_tensors="pt")["pixel_values"]
    assert ours.shape == (1, 9, SIZE, SIZE)
    for pixels, encoder in zip(ours[0].split(3), (DINO, CLIP, DINO), strict=True):
        assert_close(strategy, pixels, official(image, strategy, encoder).double())


def test_one_encoder_and_images_of_other_kinds():
    image = picture(4, 3).resize((50, 31), Image.Resampling.BICUBIC)
    prepare = processor("resize-crop", CLIP)
    pixels = prepare(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, SIZE, SIZE)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(prepare(tensor, return_tensors="pt")["pixel_values"], pixels)
    # what is no bytes is resized by torchvision, which rounds otherwise
    other = prepare(tensor.float(), return_tensors="pt")["pixel_values"]
    assert (other - pixels).abs().max() < 2 / 255 / min(CLIP["std"])


def test_options_are_saved_and_per_call(tmp_path):
    prepare = processor("letterbox", DINO, CLIP)
    prepare.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(again, CobraImageProcessor) and again.to_dict() == prepare.to_dict()
    image = picture(50, 31)
    pixels = prepare(image, return_tensors="pt", resize_strategy="resize-naive")["pixel_values"]
    assert torch.equal(pixels, processor("resize-naive", DINO, CLIP)(image, return_tensors="pt")["pixel_values"])
    assert torch.equal(pixels, again(image, return_tensors="pt", resize_strategy="resize-naive")["pixel_values"])


def test_a_large_image_is_cut_into_tiles_for_all_encoders():
    image = picture(84, 42)
    found = processor("resize-naive", DINO, CLIP, max_patches=2)(image, return_tensors="pt")
    assert found["num_patches"].tolist() == [3]
    halves = [image.crop((left, 0, left + 42, 42)) for left in (0, 42)]
    for pixels, view in zip(found["pixel_values"], [image, *halves], strict=True):
        expected = torch.cat([official(view, "resize-naive", encoder) for encoder in (DINO, CLIP)])
        assert_close("tile", pixels, expected.double())


def test_contradicting_options_are_one_clear_error():
    with pytest.raises(ValueError, match="image_mean has 6 numbers, image_std 6 and crop_pct 1, expected three"):
        CobraImageProcessor(crop_pct=[1.0])
    with pytest.raises(ValueError, match="resize_strategy is 'stretch', expected one of resize-naive, resize-crop"):
        processor("stretch", DINO)
    with pytest.raises(ValueError, match="size is 42 x 56, expected a square for resize_strategy 'letterbox'"):
        CobraImageProcessor(size={"height": 42, "width": 56}, resize_strategy="letterbox")
    with pytest.raises(ValueError, match="resize_strategy is 'stretch'"):
        processor("letterbox", DINO)(picture(9, 9), resize_strategy="stretch")
