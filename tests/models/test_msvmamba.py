# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
import torch.nn.functional as F

from tests import golden
from vlmamba import MSVMambaConfig, MSVMambaForImageClassification, MSVMambaModel, from_official
from vlmamba.models.msvmamba import PRESETS
from vlmamba.models.msvmamba.convert_msvmamba import MODELS, config_from_official, rename

SIZES = {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "image_size": 32, "state_size": 2, "num_labels": 5}
FIXTURES = golden.names("msvmamba")


def tiny(**changes) -> MSVMambaConfig:
    return MSVMambaConfig(**{**SIZES, **changes})


@pytest.mark.parametrize("name", FIXTURES)
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("msvmamba", fixture.weights, fixture.arguments)
    with torch.no_grad():
        out = model(pixel_values=fixture.io["pixel_values"], output_hidden_states=True)
        block = model.msvmamba.encoder.stages[0].blocks[0]
        fixture.check(block.mixer(fixture.io["op0.input"]), "op0.output")
        fixture.check(block(fixture.io["block0.input"]), "block0.output")
    fixture.check(out.logits, "logits")
    for i, state in enumerate(out.hidden_states[1:]):
        fixture.check(state.unflatten(1, fixture.io[f"stage{i}"].shape[1:3]), f"stage{i}")


@pytest.mark.parametrize("path", golden.published_keys("msvmamba_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    config = config_from_official(published["constructor"])
    preset = MSVMambaConfig(**PRESETS[path.stem.removeprefix("msvmamba_")], num_labels=1000)
    ours, theirs = ({k: json.dumps(v) for k, v in one.to_dict().items()} for one in (preset, config))
    assert {name for name in ours if ours[name] != theirs[name]} <= {"out_features", "out_indices"}
    with torch.device("meta"):
        model = MSVMambaForImageClassification(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "image-classification").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]


def test_the_official_backbone_norms_every_stage():
    fixture = golden.load(FIXTURES[0])
    weights = {key: v for key, v in fixture.weights.items() if not key.startswith("classifier")}
    norms = {i: torch.randn(2, 12 * 2**i) for i in (0, 2)}
    for i, (weight, bias) in norms.items():
        weights |= {f"outnorm{i}.weight": weight, f"outnorm{i}.bias": bias}
    model = from_official("msvmamba", weights, {**fixture.arguments, "out_indices": (0, 2)}, task="backbone")
    assert isinstance(model, MODELS["backbone"]) and model.channels == [12, 48] and model.strides == [4, 16]
    with torch.no_grad():
        maps = model(fixture.io["pixel_values"]).feature_maps
    for i, feature_map in zip(norms, maps, strict=True):
        stage = fixture.io[f"stage{i}"]
        fixture.io["map"] = F.layer_norm(stage, stage.shape[-1:], *norms[i]).movedim(-1, 1)
        fixture.check(feature_map, "map", golden.RELATIVE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"squeeze_reduction": 0, "conv_bias": False, "low_stride": 3, "low_conv_kernel": 3},
        {"scan": "bidirectional", "low_scan": "cross_scan", "expand": 1.5, "time_step_rank": 3},
        {"low_scan": ["es2d_step2", "column"], "conv_kernel": 1, "hidden_act": "gelu"},
        {"scan": ["raster", "local_w2"], "low_stride": 1, "mlp_ratio": 1, "state_size": 1},
    ],
    ids=str,
)
def test_options_off_the_published_path_train_at_any_size(options):
    model = MSVMambaForImageClassification(tiny(**options))
    for height, width in ((32, 32), (37, 52), (9, 70)):
        model.zero_grad()
        model(torch.randn(2, 3, height, width), labels=torch.tensor([1, 4])).loss.backward()
        assert not {name for name, p in model.named_parameters() if p.grad is None}


def test_the_state_runs_on_through_the_orders_of_the_smaller_map():
    model = MSVMambaModel(tiny()).eval()
    mixer = model.encoder.stages[0].blocks[0].mixer
    x = torch.randn(1, 12, 16)
    seen = mixer.low_scans(x, (3, 4))
    x[:, 4] = 1.0  # the eighth row that the first order reads: all that follows it sees the change
    changed = (mixer.low_scans(x, (3, 4)) != seen).any(-1)[0]
    assert changed[0].tolist() == [True] * 5 + [False] * 7 and changed[1:].all()


def test_options_without_a_counterpart_and_foreign_keys_are_errors():
    fixture = golden.load(FIXTURES[0])
    for change, words in (
        ({"sscore_type": "None"}, "sscore_type is 'None', expected 'multiscale_4scan_12' as in all published"),
        ({"ms_split": [2, 2]}, r"ms_split is \[2, 2\], expected \[1, 3\]"),
        ({"sep_norm": True}, "sep_norm is True, expected False"),
        ({"downsample_version": "v3"}, "downsample_version is 'v3', expected 'v1'"),
        ({"ms_stage": [0, 1]}, r"ms_stage is \[0, 1\], expected all 4 stages"),
        ({"ssm_rank_ratio": 1.0}, "ssm_rank_ratio is 1.0, expected at least ssm_ratio 2.0"),
    ):
        with pytest.raises(ValueError, match=words):
            from_official("msvmamba", {}, {**fixture.arguments, **change})
    weights = dict(fixture.weights)
    weights["layers.0.blocks.0.op.extra"] = weights.pop("classifier.norm.weight")
    with pytest.raises(ValueError, match=r"missing msvmamba\.norm\.weight; unexpected layers\.0\.blocks\.0\.op\.extra"):
        from_official("msvmamba", weights, fixture.arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low_stride": 0}, "low_stride is 0"),
        ({"low_conv_kernel": 6}, "low_conv_kernel is 6, expected an odd side"),
        ({"expand": 0}, "expand is 0"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"squeeze_reduction": 17}, "squeeze_reduction is 17, expected 0 to the narrowest inner width 16"),
        ({"time_step_rank": "foo"}, "time_step_rank is 'foo'"),
        ({"hidden_act": "nope"}, "hidden_act is 'nope'"),
        ({"low_scan": "nope"}, "unknown scan 'nope'"),
        ({"scan": "mamba_nd_3d_layers0_5"}, "unknown scan|of kind"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)
