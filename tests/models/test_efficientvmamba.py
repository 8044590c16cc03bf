# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from tests import golden
from vlmamba import (
    EfficientVMambaBackbone,
    EfficientVMambaConfig,
    EfficientVMambaForImageClassification,
    from_official,
)
from vlmamba.models.efficientvmamba import PRESETS
from vlmamba.models.efficientvmamba.convert_efficientvmamba import config_from_official, rename

SIZES = {"hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "image_size": 32, "state_size": 2, "num_labels": 5}


def tiny(**changes) -> EfficientVMambaConfig:
    return EfficientVMambaConfig(**{**SIZES, **changes})


@pytest.mark.parametrize("name", golden.names("efficientvmamba"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    whole = "logits" in fixture.io
    model = from_official("efficientvmamba", fixture.weights, fixture.arguments, task=None if whole else "backbone")
    with torch.no_grad():
        out = model(pixel_values=fixture.io["pixel_values"], output_hidden_states=True)
    if whole:
        fixture.check(out.logits, "logits")
    for i, state in enumerate(out.hidden_states[1:]):
        expected = fixture.io[f"stage{i}"]
        fixture.check(state.view_as(expected) if whole else state.permute(0, 2, 3, 1), f"stage{i}")


@pytest.mark.parametrize("path", golden.published_keys("efficientvmamba_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    config = config_from_official(published["constructor"])
    with torch.device("meta"):
        model = EfficientVMambaForImageClassification(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    # as the released files have them
    wrapped = {f"module.module.{key}": v for key, v in shapes.items()}
    for weights in (shapes, wrapped):
        assert {key: v.shape for key, v in rename(weights, config, "image-classification").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]


@pytest.mark.parametrize(
    ("preset", "count"), [("tiny", 6493660), ("small", 11273688), ("base", 33717136), ("small_width96", 24757456)]
)
def test_presets_have_the_published_number_of_parameters(preset, count):
    with torch.device("meta"):
        model = EfficientVMambaForImageClassification(EfficientVMambaConfig(num_labels=1000, **PRESETS[preset]))
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_official_defaults_have_mlps_and_convolutions_between_the_stages():
    arguments = {"dims": 8, "depths": [1, 1, 2, 1], "num_classes": 3, "d_state": 4, "dt_rank": 9}  # no effect there
    config = config_from_official(arguments)
    assert (config.mlp_ratio, config.downsample, config.state_size) == (4.0, "conv2", 16)
    steps = {
        "layers.0.downsample.1.weight": "stages.1.downsample.conv.weight",
        "layers.1.downsample.3.bias": "stages.2.downsample.norm.bias",
        "layers.2.4.1.bias": "stages.3.downsample.conv.bias",
        "layers.2.4.3.weight": "stages.3.downsample.norm.weight",
        "layers.1.blocks.0.norm2.weight": "stages.1.blocks.0.mlp_norm.weight",
        "layers.1.blocks.0.mlp.fc2.bias": "stages.1.blocks.0.mlp.fc2.bias",
    }
    model = EfficientVMambaForImageClassification(config)
    shapes = {key: v.shape for key, v in model.state_dict().items()}
    for official, ours in steps.items():
        ours = f"efficientvmamba.encoder.{ours}"
        assert list(rename({official: torch.empty(shapes[ours])}, config, "image-classification")) == [ours]
    model(torch.randn(2, 3, 64, 64)).logits.sum().backward()
    assert not {name for name, p in model.named_parameters() if p.grad is None}


def test_options_without_a_counterpart_and_foreign_keys_are_errors():
    with pytest.raises(ValueError, match="step_size is 3, expected 2"):
        config_from_official({"step_size": 3})
    with pytest.raises(ValueError, match="ssm_ratio is 3.0, expected at most 2"):
        config_from_official({"ssm_ratio": 3.0})
    with pytest.raises(ValueError, match="unexpected layers.2.1.conv_pw.7.weight"):
        from_official("efficientvmamba", {"layers.2.1.conv_pw.7.weight": torch.zeros(1)}, {"dims": 8})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_scan_stages": 4}, "num_scan_stages is 4, expected 0 to 3"),
        ({"hidden_sizes": [4, 8, 16]}, r"hidden_sizes is \[4, 8, 16\], expected at least 8"),
        ({"conv_kernel": 4}, "conv_kernel is 4, expected an odd side"),
        ({"scan": "es2d"}, "unknown scan 'es2d'"),
        ({"scan": "vivim3"}, "scan is 'vivim3', of kind 'video'"),
        ({"expand": 0}, "expand is 0, expected a positive inner width"),
        ({"downsample": "conv3"}, "downsample"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)


@pytest.mark.parametrize(
    "options", [{}, {"downsample": "conv2"}, {"scan": "atrous_step3", "num_scan_stages": 3}], ids=str
)
@pytest.mark.parametrize("size", [(32, 32), (40, 64), (19, 29), (36, 52)], ids=str)
def test_maps_have_the_sides_that_the_config_says(options, size):
    backbone = EfficientVMambaBackbone(tiny(**options, out_features=["stem", "stage1", "stage3"])).eval()
    maps = backbone(torch.randn(1, 3, *size)).feature_maps
    sides = [backbone.config.patch_grid(*size)] * 2 + [backbone.config.grid(*size)]
    assert [tuple(m.shape[2:]) for m in maps] == sides
    assert backbone.channels == [8, 8, 24] and backbone.strides == [4, 4, 16]


def test_eight_images_are_learned():
    torch.manual_seed(0)
    model = EfficientVMambaForImageClassification(tiny(num_labels=8)).train()
    pixels, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(pixels, labels=labels).loss.backward()
        optimizer.step()
    assert torch.equal(model(pixels).logits.argmax(-1), labels)
