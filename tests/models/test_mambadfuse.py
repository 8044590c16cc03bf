# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from transformers import AutoModel, AutoModelForImageToImage

from tests import golden
from tests.close import GRADIENT, assert_close
from vlmamba import MambaDFuseConfig, MambaDFuseForImageFusion, from_official
from vlmamba.models.mambadfuse.convert_mambadfuse import config_from_official, rename

PUBLISHED = golden.FOLDER / "mambadfuse-keys" / "embed60.json"


def tiny(**changes) -> MambaDFuseConfig:
    layers = {"num_hidden_layers": 2, "num_fusion_layers": 2, "num_reconstruction_layers": 2}
    return MambaDFuseConfig(**{"hidden_size": 8, "state_size": 4, **layers, **changes})


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.rand(shape, dtype=dtype) for name in ("pixel_values", "pixel_values_x")}


@pytest.mark.parametrize("name", golden.names("mambadfuse-full"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("mambadfuse", fixture.weights, fixture.arguments)
    with torch.no_grad():
        out = model(pixel_values=fixture.io["input.1"], pixel_values_x=fixture.io["input.2"])
    fixture.check(out.fused, "output")
    guessed = from_official("mambadfuse", fixture.weights)
    assert guessed.config.to_dict() == model.config.to_dict()


def test_every_key_of_a_published_model_finds_its_place():
    published = {
        key: torch.empty(shape, device="meta") for key, (shape, _) in json.loads(PUBLISHED.read_text()).items()
    }
    config = config_from_official({"embed_dim": 60, "depths": [6, 6], "window_size": 8})
    assert config.to_dict() == MambaDFuseConfig().to_dict()
    with torch.device("meta"):
        model = MambaDFuseForImageFusion(config)
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(published, config).items()} == ours
    assert sum(p.numel() for p in model.parameters()) == 1_347_271


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (8, 8)], ids=str)
def test_the_fused_image_has_the_size_of_the_inputs(size):
    model = MambaDFuseForImageFusion(tiny()).eval()
    fused = model(**pair(2, 1, *size)).fused
    assert fused.shape == (2, 1, *size) and fused.isfinite().all()
    (plain,) = model(**pair(2, 1, *size), return_dict=False)
    assert plain.shape == fused.shape


def test_every_image_is_fused_as_if_alone():
    model, images = MambaDFuseForImageFusion(tiny()).double().eval(), pair(3, 1, 6, 5, dtype=torch.float64)
    together = model(**images).fused
    for i in range(3):
        alone = model(**{name: v[i : i + 1] for name, v in images.items()}).fused
        assert_close("fused", alone, together[i : i + 1])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_channels": 3, "expand": 1, "conv_kernel": 2, "time_step_rank": 3},
        {"num_hidden_layers": 1, "num_exchange_layers": 1, "num_fusion_layers": 1, "num_reconstruction_layers": 1},
        {"num_exchange_layers": 3, "hidden_size": 6, "negative_slope": 0},
    ],
    ids=str,
)
def test_every_weight_is_trained(changes):
    config = tiny(**changes)
    model = MambaDFuseForImageFusion(config).train()
    model(**pair(2, config.num_channels, 5, 4)).fused.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_checkpointing_changes_no_gradient():
    model, images = MambaDFuseForImageFusion(tiny()).double().train(), pair(1, 1, 4, 6, dtype=torch.float64)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**images).fused.sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in gradients[1].items():
        assert_close(name, gradient, gradients[0][name], GRADIENT)


def test_half_precision_keeps_the_state_matrices():
    model = MambaDFuseForImageFusion(tiny()).eval()
    images = pair(1, 1, 6, 6, dtype=torch.bfloat16)
    exact = model(**{name: v.float() for name, v in images.items()}).fused
    halved = MambaDFuseForImageFusion(tiny())
    halved.load_state_dict(model.state_dict())
    assert_close("fused", halved.to(torch.bfloat16).eval()(**images).fused, exact)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageToImage])
def test_saved_models_load_by_auto_classes(auto, tmp_path):
    model, images = MambaDFuseForImageFusion(tiny()).eval(), pair(1, 1, 5, 5)
    model.save_pretrained(tmp_path)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is MambaDFuseForImageFusion and not any(report.values())
    assert torch.equal(loaded(**images).fused, model(**images).fused)
    assert auto.from_pretrained(tmp_path, dtype=torch.bfloat16).deep_fusion[0].mixer.guide_A_log.dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5)), r"pixel_values_x \(1, 1, 4, 5\), expected as many images"),
        ((torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)), r"pixel_values has shape \(1, 3, 4, 4\), expected"),
        ((torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4).byte()), "pixel_values_x has dtype torch.uint8, expected"),
    ],
    ids=str,
)
def test_bad_pairs_are_one_line(images, words):
    with pytest.raises(ValueError, match=words) as error:
        MambaDFuseForImageFusion(tiny())(*images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"img_range": 255.0}, "img_range is 255.0, expected 1.0"),
        ({"upscale": 2}, "upscale is 2, expected 1"),
        ({"in_chans": 3}, "in_chans is 3, expected 1"),
        ({"embed_dim": 2}, "hidden_size is 2, expected 4 or more"),
        ("embed60", "mambadfuse has no preset 'embed60'"),
        (None, r"missing patch_embed\.norm\.weight"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_an_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        from_official("mambadfuse", {}, arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_fusion_layers": 0}, "num_fusion_layers is 0"), ({"state_size": -1}, "state_size is -1")],
    ids=str,
)
def test_sizes_are_positive(changes, words):
    with pytest.raises(Exception, match=f"{words}, expected a positive integer"):
        tiny(**changes)


def test_missing_and_foreign_keys_are_listed():
    config = config_from_official({"embed_dim": 60})
    published = {
        key: torch.empty(shape, device="meta") for key, (shape, _) in json.loads(PUBLISHED.read_text()).items()
    }
    published["M3_block1.extra"] = published.pop("M3_block1.multi_modal_mamba_block.D_b")
    with pytest.raises(
        ValueError, match=r"missing deep_fusion\.0\.mixer\.D; unexpected M3_block1\.extra; .*block\.D; .*D_c"
    ):
        from_official("mambadfuse", published, {"embed_dim": config.hidden_size})
