# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from transformers import AutoModelForImageClassification

from tests import golden
from vlmamba import LocalVMambaBackbone, LocalVMambaConfig, LocalVMambaForImageClassification, from_official
from vlmamba.models.localvmamba import PRESETS
from vlmamba.models.localvmamba.convert_localvmamba import config_from_official, rename

SIZES = {"hidden_sizes": [8, 16], "depths": [1, 2], "image_size": 32, "state_size": 2, "num_labels": 5}
DIRECTIONS = [
    ["raster", "column_reversed", "local_w2", "local_w7_flip"],
    ["raster_reversed", "column", "local_w2_flip", "local_w7"],
    ["raster", "local_w3"],
]


def tiny(**changes) -> LocalVMambaConfig:
    return LocalVMambaConfig(**{**SIZES, "directions": DIRECTIONS, **changes})


@pytest.mark.parametrize("name", golden.names("localvmamba"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    whole = "logits" in fixture.io
    model = from_official("localvmamba", fixture.weights, fixture.arguments, task=None if whole else "backbone")
    with torch.no_grad():
        out = model(pixel_values=fixture.io["pixel_values"], output_hidden_states=True)
    if whole:
        fixture.check(out.logits, "logits")
    for i, state in enumerate(out.hidden_states[1:]):
        expected = fixture.io[f"stage{i}"]
        fixture.check(state.view_as(expected) if whole else state.permute(0, 2, 3, 1), f"stage{i}")


@pytest.mark.parametrize("path", golden.published_keys("local_vssm_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    config = LocalVMambaConfig(num_labels=1000, **PRESETS[path.stem])
    with torch.device("meta"):
        model = LocalVMambaForImageClassification(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "image-classification").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]


def test_presets_read_the_published_directions():
    tiny, small = (LocalVMambaConfig(**PRESETS[name]).directions for name in ("local_vssm_tiny", "local_vssm_small"))
    assert (len(tiny), len(small)) == (15, 33)
    assert tiny[6] == ["raster", "local_w2_flip", "local_w7", "local_w7_flip"]
    assert small[12] == ["column", "column_reversed", "local_w2_flip", "local_w7"]


def test_official_arguments_take_their_defaults():
    config = config_from_official({"d_state": 4, "dt_rank": 2, "dims": 32})  # the first two have no effect there
    assert (config.state_size, config.time_step_rank, config.merge) == (16, "auto", "softmax")
    assert (config.hidden_sizes, config.depths) == ([32, 64, 128, 256], [2, 2, 9, 2])
    config = config_from_official({"ssm_d_state": 4, "ssm_conv": 0, "patch_norm": False, "out_indices": (1, 3)})
    assert (config.state_size, config.conv_kernel, config.patch_norm) == (4, 1, False)
    assert config.out_features == ["stage2", "stage4"]
    with pytest.raises(ValueError, match="norm_layer is 'BN', expected 'LN'"):
        config_from_official({"norm_layer": "BN"})
    with pytest.raises(ValueError, match="ssm_simple_init is True, expected False"):
        config_from_official({"ssm_simple_init": True})


def test_missing_and_foreign_keys_are_listed():
    fixture = golden.load(next(name for name in golden.names("localvmamba")))
    task = "image-classification" if "logits" in fixture.io else "backbone"
    weights = dict(fixture.weights)
    weights["layers.0.blocks.0.op.extra"] = weights.pop("layers.0.blocks.0.op.A_logs")
    words = r"missing .*stages\.0\.blocks\.0\.mixer\.scans\.A_log; unexpected layers\.0\.blocks\.0\.op\.extra"
    with pytest.raises(ValueError, match=words):
        from_official("localvmamba", weights, fixture.arguments, task=task)
    wrapped = {f"module.{key}": tensor for key, tensor in fixture.weights.items()}
    assert from_official("localvmamba", wrapped, fixture.arguments, task=task)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"directions": DIRECTIONS[:2]}, "directions has 2 layers, expected 3"),
        ({"depths": [2, 2]}, "directions has 3 layers, expected 4"),
        ({"conv_kernel": 2}, "conv_kernel is 2, expected an odd side"),
        ({"hidden_sizes": [2, 4]}, "expand is 2.0, expected an inner width of at least 8"),
        ({"hidden_act": "loud"}, "hidden_act is 'loud'"),
        ({"time_step_rank": 0}, "time_step_rank is 0"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)


@pytest.mark.parametrize("options", [{}, {"conv_kernel": 1, "patch_norm": False, "hidden_act": "gelu"}], ids=str)
def test_variants_train(options):
    model = LocalVMambaForImageClassification(tiny(**options, drop_path_rate=0.1))
    model(torch.randn(4, 3, 32, 32), labels=torch.arange(4)).loss.backward()
    assert not {name for name, p in model.named_parameters() if p.grad is None}


@pytest.mark.parametrize("size", [(32, 32), (40, 64), (17, 23), (4, 50)], ids=str)
def test_maps_have_the_sides_that_the_config_says(size):
    backbone = LocalVMambaBackbone(tiny(out_features=["stem", "stage1", "stage2"])).eval()
    maps = backbone(torch.randn(1, 3, *size)).feature_maps
    sides = [backbone.config.patch_grid(*size)] * 2 + [backbone.config.grid(*size)]
    assert [tuple(m.shape[2:]) for m in maps] == sides
    assert backbone.channels == [8, 8, 16] and backbone.strides == [4, 4, 8]


def test_columns_return_to_their_positions_on_grids_that_are_no_squares():
    # official code mixes them up; turned images and directions must give the turned map
    torch.manual_seed(0)
    model = LocalVMambaForImageClassification(
        tiny(depths=[1, 1], directions=[["column", "local_w2"], ["raster"]])
    ).eval()
    mixer = model.localvmamba.encoder.stages[0].blocks[0].mixer.scans
    x = torch.randn(1, 15, 16)
    turned = x.unflatten(1, (3, 5)).transpose(1, 2).flatten(1, 2)
    mixer.scan = ["column", "raster"]
    upright = mixer(x, (3, 5)).unflatten(1, (3, 5))
    mixer.scan = ["raster", "column"]
    torch.testing.assert_close(mixer(turned, (5, 3)).unflatten(1, (5, 3)).transpose(1, 2), upright)


def test_a_search_trains_its_weights_and_keeps_the_best(tmp_path):
    torch.manual_seed(0)
    model = LocalVMambaForImageClassification(LocalVMambaConfig(**SIZES, merge="softmax"))
    model(torch.randn(4, 3, 32, 32), labels=torch.arange(4)).loss.backward()
    scans = [block.mixer.scans for stage in model.localvmamba.encoder.stages for block in stage.blocks]
    assert all(scan.merge.weights.grad.abs().min() > 0 for scan in scans)
    with torch.no_grad():
        scans[0].merge.weights.copy_(torch.tensor([0.0, 3, 0, 2, 1, 0, 0, 4]))
    found = model.eval().keep_best_directions(3)
    assert found.config.directions[0] == ["raster_reversed", "column_reversed", "local_w7_flip"]
    ours = found.localvmamba.encoder.stages[0].blocks[0].mixer.scans
    assert torch.equal(ours.A_log, scans[0].A_log[[1, 3, 7]])
    found.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 40, 24)
    assert torch.equal(again(pixels).logits, found(pixels).logits)
    with pytest.raises(ValueError, match="count is 9, expected 1 to 8"):
        model.keep_best_directions(9)
