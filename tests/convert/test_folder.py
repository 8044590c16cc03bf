# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from tests import golden
from vlmamba.convert import convert_checkpoint, image_processor_of, label_names
from vlmamba.models import ENCODERS


def test_a_checkpoint_becomes_a_folder_that_a_pipeline_takes(tmp_path):
    fixture = golden.load("vim-midcls")
    torch.save({"model": fixture.weights}, tmp_path / "vim.pth")
    arguments = {**fixture.arguments}
    convert_checkpoint("vim", tmp_path / "vim.pth", tmp_path / "vim", arguments)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "vim")
    fixture.check(model(fixture.io["pixel_values"]).logits, "logits")
    classify = pipeline("image-classification", model=str(tmp_path / "vim"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    assert len(classify(image, top_k=3)) == 3


def test_a_checkpoint_that_does_not_fit_leaves_no_folder(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "vim.pth")
    with pytest.raises(ValueError, match="no published model fits"):
        convert_checkpoint("vim", tmp_path / "vim.pth", tmp_path / "vim")
    assert not (tmp_path / "vim").exists()


def test_imagenet_labels_are_in_timms_words():
    names = label_names(1000)
    assert len(names) == 1000 and names[0] == "tench, Tinca tinca" and names[999].startswith("toilet tissue")
    assert len(label_names(21841)) == 21841
    assert label_names(10) is None


@pytest.mark.parametrize("family", ENCODERS)
def test_preprocessing_is_imagenets_of_the_right_size(tmp_path, family):
    import vlmamba

    config = getattr(vlmamba, f"{ENCODERS[family]}Config")()
    processor = image_processor_of(family, config)
    processor.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    image = Image.new("RGB", (640, 480), (124, 116, 104))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, *config.image_sides)
    assert pixels.abs().max() < 0.02  # the mean colour of ImageNet
    assert tuple(processor.image_mean) == tuple(IMAGENET_DEFAULT_MEAN)
    assert tuple(processor.image_std) == tuple(IMAGENET_DEFAULT_STD)


def test_the_resized_centre_is_what_is_cropped():
    """As in the recipes: the shorter side to size / crop_pct, bicubic, then the centre."""
    import vlmamba

    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    processor = image_processor_of("vmamba", vlmamba.VMambaConfig())
    ours = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    small = Image.fromarray(pixels).resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 282, 240))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    expected = (torch.tensor(np.asarray(small)).permute(2, 0, 1) / 255 - mean) / std
    assert (ours - expected).abs().mean() < 0.02
