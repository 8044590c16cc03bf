# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from tests import golden
from vlmamba import MambaRBackbone, MambaRConfig, MambaRForImageClassification, MambaRModel, from_official
from vlmamba.models.mambar import PRESETS
from vlmamba.models.mambar.convert_mambar import config_from_official, rename
from vlmamba.scans import registers

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_classes": 3, "num_cls_tokens": 4}


def tiny(**changes) -> MambaRConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "state_size": 4}
    return MambaRConfig(**{**sizes, "num_registers": 4, "register_reduction": 2, "num_labels": 5, **changes})


@pytest.mark.parametrize("name", golden.names("mambar-"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("mambar", fixture.weights, fixture.arguments)
    with torch.no_grad():
        out = model(pixel_values=fixture.io["pixel_values"], output_hidden_states=True)
        encoded = model.mambar(fixture.io["pixel_values"])
    fixture.check(out.logits, "logits")
    fixture.check(out.hidden_states[0], "block0.input")
    fixture.check(encoded.last_hidden_state, "tokens_normed")
    fixture.check(encoded.pooler_output, "features")
    patches = encoded.last_hidden_state.shape[1] - model.config.num_registers
    assert model.mambar.embeddings.extra_positions(patches) == fixture.io["cls_positions"].tolist()


@pytest.mark.parametrize("path", golden.published_keys("mambar_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    config = MambaRConfig(**PRESETS[path.stem], num_labels=1000)
    with torch.device("meta"):
        model = MambaRForImageClassification(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "image-classification").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4), (5, 7), (14, 14)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 12])
def test_registers_stand_where_the_scan_of_registers_reads_them(grid, count):
    patches = grid[0] * grid[1]
    embeddings = MambaRModel(tiny(num_registers=count, register_reduction=1)).embeddings
    order = registers(count).paths(*grid)[0]
    assert embeddings.extra_positions(patches) == (order >= patches).nonzero().flatten().tolist()


def test_positions_of_registers_stay_when_those_of_patches_are_resized():
    embeddings = MambaRModel(tiny()).embeddings
    table, at = embeddings.positions((4, 4)), embeddings.extra_positions(16)
    resized = embeddings.positions((3, 6))
    assert resized.shape[1] == 18 + 4
    assert torch.equal(resized[:, embeddings.extra_positions(18)], table[:, at])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"cls_reduce": 2, "num_classes": 0},
        {"rms_norm": True, "cls_reduce": 4, "img_size": (32, 48)},
        {"ssm_cfg": {"d_state": 4, "d_conv": 3, "expand": 1, "dt_rank": 3}, "drop_rate": 0.1, "channels": 1},
    ],
    ids=str,
)
def test_options_off_the_published_path_run_and_train(arguments):
    config = config_from_official({**SMALL, **arguments})
    model = MambaRForImageClassification(config).train()
    logits = model(torch.randn(2, config.num_channels, 32, 40)).logits
    assert logits.shape == (2, 3 if config.num_labels else 16 * 2)
    logits.square().sum().backward()
    assert not {n for n, p in model.named_parameters() if p.grad is None}


def test_official_models_of_an_odd_size_leave_out_what_no_whole_patch_has():
    fixture = golden.load("mambar-reduce-eps")
    side, patch = fixture.arguments["img_size"], fixture.arguments["patch_size"]
    odd = from_official("mambar", fixture.weights, {**fixture.arguments, "img_size": [side + 1, side + patch - 1]})
    whole = from_official("mambar", fixture.weights, fixture.arguments)
    pixels = torch.randn(1, 3, side + 1, side + patch - 1)
    torch.testing.assert_close(odd(pixels).logits, whole(pixels[:, :, :side, :side]).logits)


def test_official_defaults():
    config = config_from_official({})
    assert (config.num_registers, config.register_reduction, config.norm_type) == (1, 1, "layer_norm")
    assert not config.residual_in_fp32 and config.drop_path_rate == 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_cls_tokens": 0}, "num_cls_tokens is 0, expected 1 or more"),
        ({"cls_reduce": 3}, "cls_reduce is 3, expected a divisor of num_cls_tokens 4 and embed_dim 16"),
        ({"ssm_cfg": {"bias": True}}, "ssm_cfg has bias, expected d_state, d_conv, expand, dt_rank"),
        ({"ssm_cfg": {"use_fast_path": False}}, "use_fast_path is False, expected True"),
        ({"patch_size": [8, 4]}, r"patch_size is \[8, 4\], expected one side"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_an_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        from_official("mambar", {}, {**SMALL, **arguments})


def test_missing_and_foreign_keys_are_listed():
    fixture = golden.load("mambar-reduce-eps")
    weights = dict(fixture.weights)
    weights["layers.0.mixer.extra"] = weights.pop("pos_embed_cls")
    with pytest.raises(ValueError, match=r"missing mambar\.embeddings\.position_embeddings; unexpected .*extra"):
        from_official("mambar", weights, fixture.arguments)


def test_a_backbone_gives_the_patches_without_registers():
    model = MambaRBackbone(tiny(out_indices=[0, 2])).eval()
    pixels = torch.randn(1, 3, 32, 48)
    maps = model(pixels).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 16, 4, 6)] * 2
    patches = model.embeddings.project(pixels)
    normed = model.norm(patches.flatten(2).transpose(1, 2) + position_of_patches(model, (4, 6)))
    torch.testing.assert_close(maps[0].flatten(2).transpose(1, 2), normed)
    assert not [n for n, _ in model.named_parameters() if "neck" in n]


def position_of_patches(model: MambaRModel, grid: tuple[int, int]) -> torch.Tensor:
    return model.patch_tokens(model.embeddings.positions(grid), grid)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_registers": 0}, "num_registers is 0, expected a positive integer"),
        ({"register_reduction": 3}, "register_reduction is 3, expected a divisor of hidden_size 16"),
        ({"scan": "nope"}, "unknown scan 'nope'"),
        ({"time_step_rank": 0}, "time_step_rank is 0"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)
