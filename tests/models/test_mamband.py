# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
import torch.nn.functional as F

from tests import golden
from vlmamba import MambaNDBackbone, MambaNDConfig, MambaNDForImageClassification, MambaNDModel, from_official
from vlmamba.models.mamband import PRESETS
from vlmamba.models.mamband.convert_mamband import config_from_official, rename
from vlmamba.scans import get_scan


def tiny(**changes) -> MambaNDConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "image_size": 32, "patch_size": 4, "state_size": 4}
    return MambaNDConfig(**{**sizes, "downsample_layers": [1], "num_labels": 5, **changes})


def official(**changes) -> dict:
    """Official arguments of a small model."""
    arch = {"embed_dims": 16, "num_layers": 2, "num_heads": 1, "feedforward_channels": 64}
    fixed = {"out_type": "avg_featmap", "with_cls_token": False, "fused_add_norm": False, "is_2d": False}
    return {"num_classes": 3, "backbone": {"arch": arch, "img_size": 32, "patch_size": 8, **fixed, **changes}}


@pytest.mark.parametrize("name", golden.names("mamband-"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("mamband", fixture.weights, fixture.arguments)
    with torch.no_grad():
        out = model(pixel_values=fixture.io["pixel_values"], output_hidden_states=True)
        encoded = model.mamband(fixture.io["pixel_values"])
    fixture.check(out.logits, "logits")
    fixture.check(out.hidden_states[0], "block0.input")
    fixture.check(out.hidden_states[1], "block0.output")
    for i in range(1, model.config.num_hidden_layers):
        fixture.check(out.hidden_states[i + 1], f"layer{i}")
    fixture.check(encoded.last_hidden_state, "tokens_normed")
    fixture.check(encoded.pooler_output, "features")


@pytest.mark.parametrize("path", golden.published_keys("mamband_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    config = config_from_official(published["constructor"])
    assert config == MambaNDConfig(**PRESETS[path.stem.split("_")[-1]], num_labels=1000, downsample_layers=[9])
    with torch.device("meta"):
        model = MambaNDForImageClassification(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "image-classification").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 1)], ids=str)
def test_merging_follows_unfold(grid):
    """The converted weights give what an unfolding of channel-major patches gives."""
    model = MambaNDModel(tiny()).double()
    merge = model.layers[1].downsample
    with torch.no_grad():
        for parameter in merge.parameters():
            parameter.normal_()
    image = torch.randn(2, *grid, 16, dtype=torch.float64)
    pad = (0, grid[1] % 2, 0, grid[0] % 2)
    folded = F.unfold(F.pad(image.permute(0, 3, 1, 2), pad), 2, stride=2).transpose(1, 2)
    key = "backbone.layers.1.down_sample_layer."
    theirs = {"norm.weight": torch.randn(64), "norm.bias": torch.randn(64), "reduction.weight": torch.randn(16, 64)}
    theirs = {name: tensor.double() for name, tensor in theirs.items()}
    ours = rename({key + name: tensor for name, tensor in theirs.items()}, model.config, "image-classification")
    merge.load_state_dict({name.split("downsample.")[1]: tensor for name, tensor in ours.items()})
    normed = F.layer_norm(folded, (64,), theirs["norm.weight"], theirs["norm.bias"])
    torch.testing.assert_close(merge(image).flatten(1, 2), normed @ theirs["reduction.weight"].T)


def test_layers_take_turns_in_the_orders():
    config = tiny(num_hidden_layers=6)
    names = ["raster", "raster_reversed", "column", "column_reversed", "raster", "raster_reversed"]
    for layer, name in enumerate(names):
        assert torch.equal(config.scan_of_layer(layer).paths(3, 5), get_scan(name).paths(3, 5))


def test_a_turned_image_and_turned_orders_give_the_turned_map():
    """Maps that are not square are read column by column as they are."""
    upright = MambaNDModel(tiny(downsample_layers=[])).eval()
    turned = MambaNDModel(
        tiny(downsample_layers=[], scan=["column", "column_reversed", "raster", "raster_reversed"])
    ).eval()
    turned.load_state_dict(upright.state_dict())
    with torch.no_grad():
        for model in (upright, turned):
            model.embeddings.position_embeddings.zero_()
        turned.embeddings.patch_embeddings.weight.copy_(upright.embeddings.patch_embeddings.weight.transpose(2, 3))
        pixels = torch.randn(1, 3, 12, 20)
        expected = upright(pixels).last_hidden_state.unflatten(1, (3, 5))
        ours = turned(pixels.transpose(2, 3)).last_hidden_state.unflatten(1, (5, 3))
    torch.testing.assert_close(ours.transpose(1, 2), expected)


@pytest.mark.parametrize(
    "arguments",
    [
        official(has_transpose=False, drop_rate=0.1, in_channels=1),
        official(has_reverse=False, downsample=[0, 2], constant_dim=True),
        official(has_transpose=False, has_reverse=False, final_norm=False, expand=1, d_state=4),
        official(embed_dims=8, num_layers=1, downsample=[0, 9], constant_dim=True, img_size=(24, 45)),
        official(norm_cfg={"type": "LN"}, norm_cfg_2={"type": "LN"}, interpolate_mode="bilinear"),
    ],
    ids=range(5),
)
def test_options_off_the_published_path_run_and_train(arguments):
    model = MambaNDForImageClassification(config_from_official(arguments)).train()
    with torch.no_grad():
        model.classifier.weight.normal_()
    logits = model(torch.randn(2, model.config.num_channels, 32, 40)).logits
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert not {n for n, p in model.named_parameters() if p.grad is None}


def test_official_arguments_reach_the_config():
    config = config_from_official(official(has_reverse=False, norm_cfg={"type": "LN"}, norm_cfg_2={"type": "LN"}))
    assert config.scan == ["raster", "raster", "column", "column"] and config.final_norm_epsilon == 1e-5
    config = config_from_official(official(has_transpose=False))
    assert config.scan == ["raster", "raster_reversed"] * 2
    default = config_from_official({})
    assert (default.num_hidden_layers, default.hidden_size, default.patch_size) == (24, 768, 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (official(is_2d=True), "is_2d is True, expected False as in the published models"),
        (official(out_type="featmap"), "out_type is 'featmap', expected 'avg_featmap'"),
        (official(arch="huge"), "arch is 'huge', expected a dict or one of small, base"),
        (official(downsample=[1]), r"constant_dim is False, expected True with downsample \[1\]"),
        (official(norm_cfg={"type": "GN", "num_groups": 4}), "norm_cfg is .*, expected type 'LN'"),
        (official(norm_cfg_2={"type": "LN"}), "norm_cfg_2 is .* with one eps"),
        (official(out_indices=(0, 1)), r"out_indices is \(0, 1\), expected -1"),
    ],
    ids=range(7),
)
def test_what_has_no_counterpart_is_an_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        from_official("mamband", {}, arguments)


def test_missing_and_foreign_keys_are_listed():
    fixture = golden.load("mamband-2d-eps")
    weights = dict(fixture.weights)
    weights["backbone.layers.0.mixer.extra"] = weights.pop("backbone.ln2.weight")
    with pytest.raises(ValueError, match=r"missing mamband\.pooled_norm\.weight; unexpected .*extra"):
        from_official("mamband", weights, fixture.arguments)


@pytest.mark.parametrize("size", [(32, 32), (31, 20), (4, 4), (13, 44)], ids=str)
def test_images_of_any_side_give_the_grid_of_the_config(size):
    model = MambaNDModel(tiny(downsample_layers=[0, 2])).eval()
    rows, columns = model.config.grid(*size)
    assert model(torch.randn(1, 3, *size)).last_hidden_state.shape == (1, rows * columns, 16)


def test_a_backbone_gives_maps_of_two_sizes():
    model = MambaNDBackbone(tiny(out_indices=[1, 2, 4])).eval()
    maps = model(torch.randn(1, 3, 32, 20)).feature_maps
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 5), (4, 3), (4, 3)]
    assert model.channels == [16] * 3 and model.strides == [4, 8, 8]


def test_the_classifier_starts_near_nothing():
    model = MambaNDForImageClassification(tiny())
    assert 0 < model.classifier.weight.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"downsample_layers": [4]}, "downsample_layers has 4, expected layers 0 to 3"),
        ({"scan": "nope"}, "unknown scan 'nope'"),
        ({"expand": 0}, "expand is 0, expected a positive integer"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)
