# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from transformers import AutoModelForImageClassification

from tests import golden
from vlmamba import LocalVimBackbone, LocalVimConfig, LocalVimForImageClassification, LocalVimModel, from_official
from vlmamba.models.localvim import PRESETS
from vlmamba.models.localvim.convert_localvim import config_from_official, rename
from vlmamba.scans.local import LOCAL_SCANS, UNSEARCHED

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "state_size": 4, "num_labels": 5}
DIRECTIONS = [
    ["raster", "column_reversed", "local_w2", "local_w7_flip"],
    ["raster_reversed", "column", "local_w2_flip", "local_w3"],
]
OFFICIAL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_classes": 5, "final_pool_type": "mean"}


def tiny(**changes) -> LocalVimConfig:
    return LocalVimConfig(**{**SIZES, "directions": DIRECTIONS, **changes})


@pytest.mark.parametrize("name", golden.names("localvim-"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("localvim", fixture.weights, fixture.arguments)
    with torch.no_grad():
        out = model(pixel_values=fixture.io["pixel_values"], output_hidden_states=True)
        fixture.check(out.logits, "logits")
        fixture.check(model.localvim(fixture.io["pixel_values"]).last_hidden_state, "tokens_normed")
        fixture.check(model.localvim.layers[0].norm(fixture.io["block0.input"]), "mixer0.input")
    fixture.io["stream"] = fixture.io["block0.output"] + fixture.io["block0.output.1"]
    fixture.check(out.hidden_states[1], "stream")


@pytest.mark.parametrize("path", golden.published_keys("local_vim_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    config = LocalVimConfig(num_labels=1000, **PRESETS[path.stem])
    with torch.device("meta"):
        model = LocalVimForImageClassification(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "image-classification").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]


def test_presets_read_the_published_directions():
    directions = LocalVimConfig(**PRESETS["local_vim_tiny"]).directions
    assert directions[0] == ["raster", "column_reversed", "local_w7", "local_w7_flip"]
    assert directions[19] == ["column", "column_reversed", "local_w2", "local_w2_flip"]
    assert LocalVimConfig(**PRESETS["local_vim_small"]).directions == [list(UNSEARCHED)] * 20
    assert LocalVimConfig(**PRESETS["local_vim_tiny_search"]).directions == [list(LOCAL_SCANS)] * 20


def test_official_arguments_take_their_defaults_and_longer_tables():
    config = config_from_official({})
    assert (config.num_hidden_layers, config.hidden_size, config.norm_type) == (24, 192, "layer_norm")
    assert (config.merge, config.pooling, config.rotary) == ("softmax", "last", "none")
    assert not config.use_position_embeddings
    table = [["h", "w5_flip"], ["v_flip", "w11"], ["v"]]
    config = config_from_official({**OFFICIAL, "directions": table, "ssm_cfg": {"d_state": 4, "dt_rank": 3}})
    assert config.directions == [["raster", "local_w5_flip"], ["column_reversed", "local_w11"]]
    assert (config.state_size, config.time_step_rank) == (4, 3)
    # positions of whole patches alone; images are padded to more
    config = config_from_official({**OFFICIAL, "directions": table, "img_size": 38, "drop_rate": 0.1})
    assert (config.grid_size, config.grid(38, 38), config.dropout) == ((4, 4), (5, 5), 0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"if_rope": True, "if_abs_pos_embed": True},
        {"if_rope": True, "if_rope_residual": True, "rms_norm": True, "img_size": (32, 48)},
        {"if_cls_token": True, "use_middle_cls_token": True, "final_pool_type": "none"},
        {"final_pool_type": "all", "directions": None},
    ],
    ids=str,
)
def test_options_off_the_published_path_run_and_train(options):
    directions = [["h", "w7_flip"], ["v", "w2", "h_flip"]]
    config = config_from_official({**OFFICIAL, "directions": directions, **options})
    model = LocalVimForImageClassification(config)
    logits = model(torch.randn(2, 3, *config.image_sides)).logits
    assert logits.shape == ((2, 16, 5) if config.pooling == "none" else (2, 5))
    logits.square().sum().backward()
    assert not {n for n, p in model.named_parameters() if p.grad is None}


def test_updates_alone_may_turn():
    # official: the residual stays, the last layer's output turns before it is added, but not at the end
    torch.manual_seed(0)
    model = LocalVimModel(tiny(rotary="updates")).double().eval()
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        tokens, grid = model.embeddings(pixels)
        residual, hidden = torch.zeros_like(tokens), tokens
        for i, layer in enumerate(model.layers):
            residual = residual + model.before_layer(0, hidden, grid)
            paths = model.config.scan_of_layer(i).paths(*grid)
            hidden = layer.mixer(layer.norm(residual), paths, paths.shape[1] - 16)
        expected = model.norm(residual + hidden)
        torch.testing.assert_close(model(pixels).last_hidden_state, expected)


def test_unsupported_arguments_and_foreign_keys_are_errors():
    for arguments, words in (
        ({"directions": [["h"]]}, "directions has 1 layers, expected 2"),
        (
            {"directions": [["h"], ["diagonal"]]},
            r"directions\[1\] has 'diagonal', expected h, h_flip, v, v_flip, or wK",
        ),
        ({"directions": [["h"], None]}, r"directions\[1\] is None, expected a list of names"),
        ({"final_pool_type": "max"}, "final_pool_type is 'max', expected one of none, mean, all"),
        ({"if_cls_token": True}, "if_cls_token is True and use_middle_cls_token the contrary"),
        ({"ssm_cfg": {"bias": True}}, "ssm_cfg has bias, expected only d_state"),
    ):
        with pytest.raises(ValueError, match=words):
            config_from_official({**OFFICIAL, **arguments})
    mixer = {"d_state": 4, "dt_min": 0.01, "dt_init": "constant", "use_fast_path": False}  # of which one has an effect
    assert config_from_official({**OFFICIAL, "ssm_cfg": mixer}).state_size == 4
    fixture = golden.load("localvim-search")
    weights = dict(fixture.weights)
    weights["layers.0.mixer.extra"] = weights.pop("norm_f.weight")
    with pytest.raises(ValueError, match=r"missing localvim\.norm\.weight; unexpected layers\.0\.mixer\.extra"):
        from_official("localvim", weights, fixture.arguments)
    table = fixture.weights["rope.freqs_cos"]
    for other in (table + 0.1, table[:9]):
        with pytest.raises(ValueError, match=r"does not fit: unexpected rope\.freqs_cos$"):
            from_official("localvim", {**fixture.weights, "rope.freqs_cos": other}, fixture.arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"directions": DIRECTIONS[:1]}, "directions has 1 layers, expected 2"),
        ({"directions": [["raster"], []]}, r"directions\[1\] is empty"),
        ({"directions": [["raster"], ["local"]]}, "unknown scan 'local'"),
        ({"directions": [["raster"], "es2d_step2"]}, r"directions\[1\] is \['es2d_step2'\], of kind 'parts'"),
        ({"directions": 4}, "directions"),
        ({"merge": "sum"}, "merge"),
        ({"hidden_size": 18}, "hidden_size is 18, expected a multiple of 4"),
        ({"hidden_size": 3, "rotary": "none"}, "hidden_size is 3, expected an inner width of 8"),
        ({"class_token": "middle"}, "rotary is 'stream', expected 'none' with a class token"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)


@pytest.mark.parametrize("options", [{}, {"class_token": "middle", "rotary": "none"}], ids=str)
@pytest.mark.parametrize("size", [(32, 32), (40, 64), (17, 23), (8, 50)], ids=str)
def test_any_image_gives_the_tokens_that_the_config_says(size, options):
    model = LocalVimModel(tiny(**options)).eval()
    out = model(torch.randn(1, 3, *size), output_hidden_states=True)
    height, width = model.config.grid(*size)
    assert out.last_hidden_state.shape == (1, height * width + bool(options), 16) and len(out.hidden_states) == 3
    backbone = LocalVimBackbone(tiny(**options, out_features=["stem", "stage2"])).eval()
    maps = backbone(torch.randn(1, 3, *size)).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 16, height, width)] * 2
    assert backbone.channels == [16, 16] and backbone.strides == [8, 8]


def test_a_search_trains_its_weights_and_keeps_the_best(tmp_path):
    torch.manual_seed(0)
    model = LocalVimForImageClassification(LocalVimConfig(**SIZES, merge="softmax"))
    before = [layer.mixer.merge.weights.detach().clone() for layer in model.localvim.layers]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3, 32, 32), labels=torch.arange(4)).loss.backward()
    optimizer.step()
    for old, layer in zip(before, model.localvim.layers, strict=True):
        assert layer.mixer.merge.weights.grad.abs().min() > 0
        assert (layer.mixer.merge.weights - old).abs().min() > 0
    with torch.no_grad():
        model.localvim.layers[0].mixer.merge.weights.copy_(torch.tensor([0.0, 3, 0, 2, 1, 0, 0, 4]))
    found = model.eval().keep_best_directions()
    assert found.config.directions[0] == ["raster_reversed", "column_reversed", "local_w2", "local_w7_flip"]
    assert (found.config.merge, model.config.merge) == ("channel_gate", "softmax")
    ours, theirs = (m.localvim.layers[0].mixer.directions for m in (found, model))
    assert [torch.equal(a.A_log, theirs[k].A_log) for a, k in zip(ours, [1, 3, 4, 7], strict=True)] == [True] * 4
    found.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 40, 24)
    assert torch.equal(again(pixels).logits, found(pixels).logits)
    with pytest.raises(ValueError, match="merge is 'channel_gate', expected a model that searches"):
        found.keep_best_directions()


def test_time_steps_begin_as_published():
    mixer = LocalVimModel(tiny()).layers[0].mixer
    assert not mixer.directions[0].dt_proj.bias.any() and mixer.in_proj.weight.std() < 0.03
