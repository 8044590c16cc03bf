# SPDX-License-Identifier: Apache-2.0
import json
from importlib import import_module

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
)

from tests import golden
from vlmamba import VMambaBackbone, VMambaConfig, VMambaForImageClassification, VMambaModel, from_official
from vlmamba.models.vmamba import PRESETS
from vlmamba.models.vmamba.convert_vmamba import config_from_official, rename

SIZES = {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "image_size": 32, "state_size": 2, "num_labels": 5}
GATED = {"gate": "activated", "downsample": "merge", "patch_embedding": "single", "mlp_ratio": 0.0}
VARIANTS = [
    {},
    {**GATED, "conv_bias": True},
    {"use_position_embeddings": True, "mlp_gated": True, "downsample": "conv2", "patch_norm": False},
    {"norm_type": "batch_norm", "scan": "cross_scan_bidi", "out_norm": "layer_norm_conv"},
    {"cascade": True, "gate": "linear", "conv_kernel": 1, "activate_output": True},
]


def tiny(**changes) -> VMambaConfig:
    return VMambaConfig(**{**SIZES, **changes})


@pytest.mark.parametrize("name", golden.names("vmamba-"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    task = "backbone" if name.endswith("-backbone") else None
    model = from_official("vmamba", fixture.weights, fixture.arguments, task=task)
    with torch.no_grad():
        out = model(pixel_values=fixture.io["pixel_values"], output_hidden_states=True)
    if task is None:
        fixture.check(out.logits, "logits")
    else:
        for i, feature_map in enumerate(out.feature_maps):
            fixture.check(feature_map, f"outs{i}")
        assert sum(key.startswith("outs") for key in fixture.io) == len(out.feature_maps)
    for i, state in enumerate(out.hidden_states[1:]):
        if (expected := fixture.io.get(f"stage{i}")) is not None:
            fixture.io["stage"] = expected if fixture.arguments.get("norm_layer") == "ln2d" else expected.movedim(-1, 1)
            grid = fixture.io["stage"].shape[2:]
            fixture.check(state if task else state.transpose(1, 2).unflatten(2, grid), "stage")


@pytest.mark.parametrize("path", golden.published_keys("vmamba_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    task, kind = "image-classification", VMambaForImageClassification
    if "backbone" in path.stem:
        task, kind = "backbone", VMambaBackbone
    config = config_from_official(published["constructor"])
    with torch.device("meta"):
        model = kind(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, task).items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]


@pytest.mark.parametrize(
    ("preset", "count"),
    [("tiny", 30249064), ("small", 50147752), ("base", 88557800), ("vssm_tiny", 22893448), ("tiny_s2l5", 30705832)],
)
def test_presets_have_the_published_number_of_parameters(preset, count):
    with torch.device("meta"):
        model = VMambaForImageClassification(VMambaConfig(num_labels=1000, **PRESETS[preset]))
    assert sum(p.numel() for p in model.parameters()) == count


def test_names_of_the_first_release_load():
    fixture = golden.load("vmamba-flags")
    old = {"classifier.norm.": "norm.", "classifier.head.": "head.", ".norm.": ".ln_1.", ".op.": ".self_attention."}
    weights = {}
    for key, tensor in fixture.weights.items():
        for new, name in old.items():
            key = key.replace(new, name, 1) if not key.startswith("norm.") and "downsample" not in key else key
        weights[key] = tensor
    model = from_official("vmamba", weights, fixture.arguments)
    with torch.no_grad():
        fixture.check(model(pixel_values=fixture.io["pixel_values"]).logits, "logits")


def test_what_the_tags_of_the_official_mixer_say():
    def parts(forward_type: str) -> tuple:
        config = config_from_official({"forward_type": forward_type})
        return config.scan, config.cascade, config.gate, config.out_norm, config.activate_output

    assert parts("v05_noz") == parts("v4noz") == ("cross_scan", False, "none", "layer_norm", False)
    assert parts("v051d_onsigmoid_nozact") == ("cross_scan_unidi", False, "linear", "sigmoid", False)
    assert parts("v052dc_oact_no32") == ("cross_scan", True, "activated", "layer_norm", True)
    assert parts("v052d3_oncnorm") == ("cross_scan_rot90", False, "activated", "layer_norm_conv", False)
    for wrong, words in (
        ("m0", "forward_type is 'm0', expected one of v0"),
        ("v2_onbn", "whose tag 'onbn' is unknown"),
    ):
        with pytest.raises(ValueError, match=words):
            parts(wrong)


def test_the_first_mixer_has_its_own_choices_whatever_is_asked():
    config = config_from_official(
        {"forward_type": "v0", "ssm_conv_bias": False, "ssm_act_layer": "gelu", "ssm_conv": 1}
    )
    assert (config.conv_bias, config.hidden_act, config.conv_kernel) == (True, "silu", 3)


def test_arguments_have_the_names_of_the_first_release_too():
    config = config_from_official({"d_state": 4, "dt_rank": 3, "attn_drop_rate": 0.1, "drop_rate": 0.2})
    assert (config.state_size, config.time_step_rank, config.dropout, config.mlp_dropout) == (4, 3, 0.1, 0.2)
    assert config_from_official({"d_state": 4, "ssm_d_state": 2}).state_size == 2


def test_positions_are_resized_for_another_image_size():
    fixture = golden.load("vmamba-flags")
    model = from_official("vmamba", fixture.weights, {**fixture.arguments, "imgsize": 96})
    table = model.vmamba.encoder.embeddings.position_embeddings
    assert table.shape == (1, 24, 24, 16)
    pixels = torch.randn(1, 3, 96, 96)
    small = from_official("vmamba", fixture.weights, fixture.arguments)  # resizes when it runs
    torch.testing.assert_close(model(pixels).logits, small(pixels).logits)


def test_positions_are_those_of_whole_patches_and_not_added_in_a_backbone():
    arguments = {**golden.load("vmamba-flags").arguments, "imgsize": 67}
    config = config_from_official(arguments)
    assert config.grid_size == (16, 16) and config_from_official({**arguments, "posembed": False}).image_size == 67
    table = torch.randn(1, 16, 16, 16)
    for task, encoder in (("image-classification", "vmamba.encoder"), ("backbone", "encoder")):
        ours = rename({"pos_embed": table}, config, task)[f"{encoder}.embeddings.position_embeddings"]
        # the official backbone has them and leaves them out
        assert torch.equal(ours, table.permute(0, 2, 3, 1) * (task != "backbone"))


@pytest.mark.parametrize("family", ["vmamba", "localvmamba", "efficientvmamba", "msvmamba", "mambavision"])
def test_official_backbones_give_the_stages_in_their_order(family):
    arguments = {"forward_type": "v2", "downsample_version": "v1", "out_indices": (3, 1)}
    if family == "msvmamba":
        arguments |= {"sscore_type": "multiscale_4scan_12", "convFFN": True, "mlp_ratio": 0.0}
    converter = import_module(f"vlmamba.models.{family}.convert_{family}")
    assert converter.config_from_official(arguments).out_features == ["stage2", "stage4"]


def test_directions_of_the_cascade_keep_their_parameters():
    # official: there and back along the rows, then along the columns; ours: rows, columns, and both back
    arguments = {"forward_type": "v052dc", "dims": 8, "depths": [1], "num_classes": 2}
    config = config_from_official(arguments)
    skips = torch.arange(4.0).repeat_interleave(16)
    ours = rename({"layers.0.blocks.0.op.Ds": skips}, config, "image-classification")
    assert ours["vmamba.encoder.stages.0.blocks.0.mixer.scans.D"][:, 0].tolist() == [0, 2, 1, 3]


def test_batch_norms_find_their_places():
    arguments = {
        "norm_layer": "bn",
        "dims": 8,
        "depths": [1, 1],
        "patchembed_version": "v2",
        "downsample_version": "v3",
    }
    config = config_from_official(arguments)
    model = VMambaForImageClassification(config).state_dict()
    for official in (
        "patch_embed.2.running_mean",
        "patch_embed.7.weight",
        "layers.0.blocks.0.norm.running_var",
        "layers.1.blocks.0.norm2.num_batches_tracked",
        "layers.0.downsample.3.bias",
        "classifier.norm.weight",
        "layers.0.blocks.0.op.out_norm.weight",
    ):
        (ours,) = rename({official: torch.zeros(1)}, config, "image-classification")
        assert ours in model
        assert ours.split(".")[-2] == ("out_norm" if "out_norm" in official else "batch_norm")


def test_foreign_keys_tasks_and_options_are_errors():
    fixture = golden.load("vmamba-flags")
    weights = dict(fixture.weights)
    weights["layers.0.blocks.0.op.extra"] = weights.pop("classifier.norm.weight")
    with pytest.raises(ValueError, match=r"missing vmamba\.norm\.weight; unexpected layers\.0\.blocks\.0\.op\.extra"):
        from_official("vmamba", weights, fixture.arguments)
    with pytest.raises(ValueError, match=r"no task 'depth'; expected one of image-classification, backbone"):
        from_official("vmamba", {}, {}, task="depth")
    with pytest.raises(ValueError, match="vim has no task 'backbone'; expected one of image-classification"):
        from_official("vim", {}, {}, task="backbone")
    with pytest.raises(ValueError, match="downsample_version is 'none', expected one of v1, v2, v3"):
        from_official("vmamba", {}, {"downsample_version": "none"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": 0}, "patch_size is 0"),
        ({"patch_size": 3}, "patch_size and .* expected even"),
        ({"hidden_sizes": [8, -16, 24]}, r"hidden_sizes\[1\] is -16"),
        ({"depths": [1, 2]}, "depths has 2 stages, expected 3"),
        ({"conv_kernel": 4}, "conv_kernel is 4, expected an odd side"),
        ({"expand": 0}, "expand is 0"),
        ({"time_step_rank": "foo"}, "time_step_rank is 'foo'"),
        ({"hidden_act": "nope"}, "hidden_act is 'nope'"),
        ({"scan": "nope"}, "unknown scan 'nope'"),
        ({"scan": "raster", "cascade": True}, "scan is 'raster', expected 'cross_scan'"),
        ({"image_size": [32]}, r"image_size is \[32\]"),
        ({"gate": "open"}, "gate"),
        ({"state_size": "wide"}, "state_size"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variants_are_saved_loaded_and_trained(tmp_path, variant):
    model = VMambaForImageClassification(tiny(**variant))
    pixels = torch.randn(2, 3, 32, 32)
    model(pixels, labels=torch.tensor([1, 4])).loss.backward()
    assert not {name for name, p in model.named_parameters() if p.grad is None}
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(model(pixels).logits, again(pixels).logits)
    headless = AutoModel.from_pretrained(tmp_path)
    assert isinstance(headless, VMambaModel)
    assert torch.equal(headless(pixels).pooler_output, model.vmamba(pixels).pooler_output)


def test_a_backbone_gives_the_stages_asked_for_and_loads_a_classifier(tmp_path):
    model = VMambaForImageClassification(tiny()).eval()
    model.save_pretrained(tmp_path)
    names = ["stage1", "stage3"]
    backbone, info = VMambaBackbone.from_pretrained(tmp_path, out_features=names, output_loading_info=True)
    assert backbone.channels == [8, 24] and all("hidden_states_norms" in key for key in info["missing_keys"])
    pixels = torch.randn(2, 3, 40, 64)
    out = backbone(pixels, output_hidden_states=True)
    assert [tuple(m.shape) for m in out.feature_maps] == [(2, 8, 10, 16), (2, 24, 3, 4)]
    states = model(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(out.hidden_states[-1].flatten(2).transpose(1, 2), states[-1])
    assert backbone(pixels).hidden_states is None
    backbone.save_pretrained(tmp_path)
    again = VMambaBackbone.from_pretrained(tmp_path)
    assert again.out_features == names
    assert torch.equal(again(pixels).feature_maps[1], out.feature_maps[1])


def test_it_compiles_and_exports_without_graph_breaks():
    # one block of each kind of scan
    for options in ({}, {**GATED, "cascade": True}):
        model = VMambaModel(tiny(hidden_sizes=[8], depths=[1], **options)).eval()
        pixels = torch.randn(2, 3, 16, 16)
        expected = model(pixels).pooler_output
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(pixels).pooler_output, expected)
    exported = torch.export.export(model, (pixels,)).module()
    torch.testing.assert_close(exported(pixels).pooler_output, expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("size", [(32, 32), (36, 52), (16, 70), (17, 23)])
def test_maps_have_the_sides_that_the_config_says(variant, size):
    model = VMambaModel(tiny(**variant)).eval()
    out = model(torch.randn(1, 3, *size), output_hidden_states=True)
    height, width = model.config.grid(*size)
    assert out.last_hidden_state.shape == (1, height * width, 24)
    height, width = model.config.patch_grid(*size)
    assert [tuple(h.shape) for h in out.hidden_states[:2]] == [(1, height * width, 8)] * 2


@pytest.mark.parametrize(("patches", "strides"), [("single", [8, 16, 32]), ("double", [16, 32, 64])])
def test_strides_are_those_of_the_maps(patches, strides):
    config = VMambaConfig(**{**SIZES, "patch_size": 8, "patch_embedding": patches, "out_indices": [1, 2, 3]})
    backbone = VMambaBackbone(config)
    maps = backbone(torch.randn(1, 3, 128, 128)).feature_maps
    assert backbone.strides == strides and [128 // m.shape[2] for m in maps] == strides


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 3, 3, 32), (3, 32, 32)])
def test_images_of_a_wrong_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"pixel_values has shape .* with H and W at least 4"):
        VMambaModel(tiny(**GATED))(torch.zeros(shape))
