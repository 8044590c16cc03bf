# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from tests import golden
from vlmamba import (
    PlainMambaBackbone,
    PlainMambaConfig,
    PlainMambaForImageClassification,
    PlainMambaModel,
    from_official,
)
from vlmamba.models.plainmamba import PRESETS
from vlmamba.models.plainmamba.convert_plainmamba import config_from_official, rename


def tiny(**changes) -> PlainMambaConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "state_size": 4}
    return PlainMambaConfig(**{**sizes, "conv_kernel": 3, "num_labels": 5, **changes})


def backbone(layer: dict | None = None, **changes) -> dict:
    """Official arguments of a small model."""
    mixer = {"d_state": 4, "conv_size": 3, **(layer or {})}
    sizes = {"img_size": 32, "patch_size": 8, "embed_dims": 16, "num_layers": 2}
    layers = {"use_rms_norm": False, "mamba_cfg": mixer}
    return {"num_classes": 3, "backbone": {**sizes, "layer_cfgs": layers, **changes}}


@pytest.mark.parametrize("name", golden.names("plainmamba-"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("plainmamba", fixture.weights, fixture.arguments)
    with torch.no_grad():
        out = model(pixel_values=fixture.io["pixel_values"], output_hidden_states=True)
        pooled = model.plainmamba(fixture.io["pixel_values"])
        mixed = model.plainmamba.layers[0].mixer(fixture.io["mixer0.input"], grid(fixture))
    fixture.check(out.logits, "logits")
    fixture.check(out.hidden_states[0], "block0.input")
    fixture.check(out.hidden_states[1], "block0.output")
    fixture.check(mixed, "mixer0.output")
    fixture.check(pooled.last_hidden_state, "tokens_normed")
    fixture.check(pooled.pooler_output, "features")


def grid(fixture: golden.Golden) -> tuple[int, int]:
    patch = fixture.arguments["backbone"]["patch_size"]
    return tuple(side // patch for side in fixture.io["pixel_values"].shape[2:])


@pytest.mark.parametrize("path", golden.published_keys("plainmamba_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    config = config_from_official(published["constructor"])
    assert config == PlainMambaConfig(**PRESETS[path.stem.split("_")[1].upper()], num_labels=1000)
    with torch.device("meta"):
        model = PlainMambaForImageClassification(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "image-classification").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]


@pytest.mark.parametrize(
    "arguments",
    [
        backbone({"bias": True, "conv_bias": False, "expand": 1.5, "dt_rank": 3}, layers_with_dwconv=[1]),
        backbone({"init_layer_scale": 0.5}, num_convs_patch_embed=0, drop_rate=0.1, out_indices=[1]),
        backbone(final_norm=False, with_pos_embed=False, in_channels=1),
        backbone(layer_cfgs={"use_rms_norm": True, "mamba_cfg": {"d_state": 4}}, norm_cfg={"type": "LN"}),
        backbone(img_size=(24, 45), interpolate_mode="bilinear"),
    ],
    ids=range(5),
)
def test_options_off_the_published_path_run_and_train(arguments):
    model = PlainMambaForImageClassification(config_from_official(arguments)).train()
    logits = model(torch.randn(2, model.config.num_channels, 32, 40)).logits
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert not {n for n, p in model.named_parameters() if p.grad is None}


def test_official_defaults_and_arguments_reach_the_config():
    config = config_from_official(backbone({"init_layer_scale": 0.5}, norm_cfg={"type": "LN"}, final_norm=False))
    assert (config.layer_scale_init_value, config.final_norm_epsilon, config.use_final_norm) == (0.5, 1e-5, False)
    assert not config.projection_bias and config.convolved_layers == []
    default = config_from_official({})
    assert (default.num_hidden_layers, default.hidden_size, default.num_labels) == (20, 192, 1000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (backbone(arch="L4"), "arch is 'L4', expected None or one of L1, L2, L3"),
        (backbone(layer_cfgs=[{}, {}]), "layer_cfgs is a list, expected one dict for all layers"),
        (backbone({"conv_stride": 2}), "mamba_cfg has conv_stride, expected d_state, expand"),
        (backbone(norm_cfg={"type": "BN"}), "norm_cfg is {'type': 'BN'}, expected type 'LN'"),
    ],
    ids=range(4),
)
def test_what_has_no_counterpart_is_an_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        from_official("plainmamba", {}, arguments)


def test_norms_of_other_layers_are_not_the_classifiers():
    # officially it reads the last layer, whichever layers a head for maps would be given
    fixture = golden.load("plainmamba-l1-eps")
    arguments = {**fixture.arguments, "backbone": {**fixture.arguments["backbone"], "out_indices": [0, -1]}}
    weights = {**fixture.weights, "backbone.norm_layer0.weight": torch.ones(8)}
    with torch.no_grad():
        fixture.check(from_official("plainmamba", weights, arguments)(fixture.io["pixel_values"]).logits, "logits")


def test_missing_and_foreign_keys_are_listed():
    fixture = golden.load("plainmamba-l1-eps")
    weights = dict(fixture.weights)
    weights["backbone.layers.0.mamba.extra"] = weights.pop("backbone.patch_embed.convs.0.weight")
    with pytest.raises(ValueError, match=r"missing plainmamba\.embeddings\.stem\.3\.weight; unexpected .*extra"):
        from_official("plainmamba", weights, fixture.arguments)


@pytest.mark.parametrize("side", [31, 32, 33, 39])
def test_images_of_any_side_give_the_grid_of_the_config(side):
    model = PlainMambaModel(tiny()).eval()
    tokens = model(torch.randn(1, 3, side, 40)).last_hidden_state
    assert tokens.shape[1] == model.config.grid(side, 40)[0] * 5


@pytest.mark.parametrize("side", [31, 33, 39])
def test_images_can_lose_what_no_whole_patch_has(side):
    model = PlainMambaModel(tiny(pad_images=False)).eval()
    pixels = torch.randn(1, 3, side, 45)
    whole = pixels[:, :, : side // 8 * 8, :40]
    torch.testing.assert_close(model(pixels).last_hidden_state, model(whole).last_hidden_state)
    assert model.config.grid(side, 45) == (side // 8, 5)


@pytest.mark.parametrize("scan", ["cross_scan", "zigma8", ["row_snake", "hilbert"], "local_w2"])
@pytest.mark.parametrize("permute", [True, False])
def test_other_scans_run_and_train(scan, permute):
    model = PlainMambaModel(tiny(scan=scan, permute_inputs=permute)).train()
    model(torch.randn(2, 3, 32, 24)).pooler_output.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_gradient_checkpointing_counts_a_batch_once_in_the_norms():
    torch.manual_seed(0)
    pixels, statistics = torch.randn(2, 3, 32, 32), []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = PlainMambaForImageClassification(tiny(convolved_layers=[0, 1])).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixels).logits.sum().backward()
        statistics.append(dict(model.named_buffers()))
    assert len(statistics[0]) == 3 * 4
    assert all(torch.equal(statistics[0][name], tensor) for name, tensor in statistics[1].items())


def test_a_backbone_gives_maps_of_layers():
    config = tiny(num_hidden_layers=4, out_indices=[1, 4])
    model = PlainMambaBackbone(config).eval()
    maps = model(torch.randn(1, 3, 32, 48)).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 16, 4, 6)] * 2
    assert model.channels == [16, 16] and model.strides == [8, 8]
    assert PlainMambaBackbone(tiny(use_final_norm=False))(torch.randn(1, 3, 32, 32)).feature_maps[0].shape[1] == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": 7}, "patch_size is 7, expected an even side"),
        ({"conv_kernel": 4}, "conv_kernel is 4, expected an odd side"),
        ({"expand": 0}, "expand is 0, expected a positive inner width"),
        ({"num_stem_convolutions": -1}, "num_stem_convolutions is -1"),
        ({"convolved_layers": [2]}, "convolved_layers has 2, expected layers 0 to 1"),
        ({"scan": "es2d_step2"}, "scan is 'es2d_step2', of kind 'parts'; expected one of kind grid"),
        ({"time_step_rank": "foo"}, "time_step_rank is 'foo'"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)
