# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
import torch.nn.functional as F

from tests import golden
from vlmamba import MambaVisionConfig, MambaVisionForImageClassification, from_official
from vlmamba.layers.concat_mixer import ConcatMixer
from vlmamba.layers.windows import WindowAttention
from vlmamba.models.mambavision import PRESETS
from vlmamba.models.mambavision.convert_mambavision import MODELS, config_from_official, preprocessing, rename

SIZES = {
    "stem_size": 4,
    "hidden_sizes": [4, 8, 12],
    "depths": [1, 2, 3],
    "num_conv_stages": 1,
    "window_sizes": [1, 3, 2],
    "num_attention_heads": [1, 2, 3],
    "image_size": 32,
    "state_size": 2,
    "num_labels": 5,
}
FIXTURES = golden.names("mambavision-")


def tiny(**changes) -> MambaVisionConfig:
    return MambaVisionConfig(**{**SIZES, **changes})


def squares(tokens: torch.Tensor) -> torch.Tensor:
    """`[B, side * side, D]` -> `[B, side, side, D]`."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens.unflatten(1, (side, side))


@pytest.mark.parametrize("name", FIXTURES)
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("mambavision", fixture.weights, fixture.arguments)
    stages = model.mambavision.encoder.stages
    with torch.no_grad():
        out = model(pixel_values=fixture.io["pixel_values"], output_hidden_states=True)
        fixture.check(out.logits, "logits")
        first = stages[2].blocks[0]
        attends = next(block for block in stages[2].blocks if isinstance(block.mixer, WindowAttention))
        for module, key in ((first.mixer, "mixer"), (first, "mamba_block"), (attends, "attn_block")):
            if f"{key}.input" in fixture.io:
                fixture.check(module(squares(fixture.io[f"{key}.input"])).flatten(1, 2), f"{key}.output")
        for i, state in enumerate(out.hidden_states[1:]):
            shape = fixture.io[f"level{i}"].shape[2:]
            if i < len(stages) - 1:  # officially a level ends with what our next stage begins with
                shape = [2 * side for side in shape]
            level = state.unflatten(1, shape)
            level = stages[i + 1].downsample(level) if i < len(stages) - 1 else level
            fixture.check(level.movedim(-1, 1), f"level{i}")


@pytest.mark.parametrize("path", golden.published_keys("mamba_vision_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    config = MambaVisionConfig(**PRESETS[path.stem.removeprefix("mamba_vision_")], num_labels=1000)
    with torch.device("meta"):
        model = MambaVisionForImageClassification(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "image-classification").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]
    assert sum(b.numel() for b in model.buffers()) == published["n_buffer_elements"]


def test_names_of_the_hub_load_and_missing_sizes_are_those_of_the_smallest():
    fixture = golden.load(FIXTURES[0])
    prefixed = {f"model.{key}": tensor for key, tensor in fixture.weights.items()}
    model = from_official("mambavision", prefixed, fixture.arguments)
    with torch.no_grad():
        fixture.check(model(fixture.io["pixel_values"]).logits, "logits")
    config = config_from_official({})
    assert (config.depths, config.hidden_sizes, config.window_sizes) == (
        [1, 3, 8, 4],
        [80, 160, 320, 640],
        [8, 8, 14, 7],
    )


def test_the_official_backbone_norms_every_level_before_it_shrinks():
    fixture = golden.load(FIXTURES[0])
    weights = {key: v for key, v in fixture.weights.items() if not key.startswith(("norm.", "head."))}
    widths = [fixture.arguments["dim"] * 2**i for i in range(4)]
    norms = [torch.randn(2, width) for width in widths]
    for i, (weight, bias) in enumerate(norms):
        weights |= {f"outnorm{i}.weight": weight, f"outnorm{i}.bias": bias}
    model = from_official("mambavision", weights, {**fixture.arguments, "norm_layer": "ln2d"}, task="backbone")
    assert isinstance(model, MODELS["backbone"]) and model.channels == widths and model.strides == [4, 8, 16, 32]
    classifier = from_official("mambavision", fixture.weights, fixture.arguments)
    with torch.no_grad():
        maps = model(fixture.io["pixel_values"]).feature_maps
        states = classifier(fixture.io["pixel_values"], output_hidden_states=True).hidden_states[1:]
    for feature_map, state, norm in zip(maps, states, norms, strict=True):
        expected = F.layer_norm(state, state.shape[-1:], *norm)
        torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), expected)
    with pytest.raises(ValueError, match="norm_layer is 'bn', expected 'ln2d'"):
        from_official("mambavision", weights, {"norm_layer": "bn"}, task="backbone")


@pytest.mark.parametrize(("depth", "attending"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_the_second_half_of_a_stage_attends(depth, attending):
    model = MODELS["backbone"](tiny(depths=[1, 1, depth]))
    kinds = [type(block.mixer) for block in model.encoder.stages[2].blocks]
    assert kinds == [ConcatMixer] * (depth - attending) + [WindowAttention] * attending


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_scale_init_value": 0.1, "conv_layer_scale_init_value": 0.2, "qk_norm": True, "qkv_bias": False},
        {"scan": "cross_scan", "expand": 1.5, "time_step_rank": 3, "conv_kernel": 5},
        {"num_conv_stages": 3, "depths": [1, 1, 1]},
        {"num_conv_stages": 0, "window_sizes": [9, 3, 7], "mlp_ratio": 1.5},
    ],
    ids=str,
)
def test_options_off_the_published_path_train_at_any_size(options):
    model = MambaVisionForImageClassification(tiny(**options))
    for height, width in ((32, 32), (37, 52), (9, 70)):
        model.zero_grad()
        model(torch.randn(2, 3, height, width), labels=torch.tensor([1, 4])).loss.backward()
        assert not {name for name, p in model.named_parameters() if p.grad is None}


def test_only_a_number_is_a_layer_scale():
    scales = {"layer_scale": True, "layer_scale_conv": 1}
    config = config_from_official(scales)
    assert (config.layer_scale_init_value, config.conv_layer_scale_init_value) == (None, 1.0)


def test_a_new_model_starts_as_published():
    model = MambaVisionForImageClassification(tiny(layer_scale_init_value=1e-5))
    mixer, block = model.mambavision.encoder.stages[1].blocks[0].mixer, model.mambavision.encoder.stages[1].blocks[0]
    assert not mixer.scans.dt_projs[0].bias.any() and mixer.scans.dt_projs[0].weight.std() < 0.03
    assert torch.equal(mixer.scans.A_log[0].exp().round(), torch.tensor([1.0, 2.0]).expand(4, 2))
    assert (block.scale.weight == 1e-5).all() and (block.mlp_scale.weight == 1e-5).all()


def test_gradient_checkpointing_counts_a_batch_once_in_the_norms():
    pixels, statistics = torch.randn(2, 3, 32, 32), []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = MambaVisionForImageClassification(tiny()).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(pixels).logits.sum().backward()
        statistics.append(dict(model.named_buffers()))
    assert statistics[0] and all(torch.equal(statistics[1][name], tensor) for name, tensor in statistics[0].items())


def test_preprocessing_is_the_published_one():
    crops = {name: preprocessing(MambaVisionConfig(**preset))["crop_pct"] for name, preset in PRESETS.items()}
    assert {name: crop for name, crop in crops.items() if crop != 1.0} == {
        "T2": 0.98,
        "S": 0.93,
        "L2_512_21k": 0.93,
        "L3_512_21k": 0.93,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": 8}, "patch_size is 8, expected 4"),
        ({"conv_kernel": 4}, "conv_kernel is 4, expected an odd number of taps"),
        ({"window_sizes": [1, 2]}, "window_sizes has 2 stages, expected 3"),
        ({"window_sizes": [1, 0, 2]}, r"window_sizes\[1\] is 0"),
        ({"num_attention_heads": [1, 3, 3]}, r"num_attention_heads\[1\] is 3, expected a divisor of the width 8"),
        ({"num_conv_stages": 4}, "num_conv_stages is 4, expected 0 to 3"),
        ({"expand": 0}, "expand is 0"),
        ({"scan": "nope"}, "unknown scan 'nope'"),
        ({"time_step_rank": "foo"}, "time_step_rank is 'foo'"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)
