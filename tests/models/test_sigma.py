# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, SwinConfig

from tests import golden
from tests.close import assert_close
from vlmamba import SigmaConfig, SigmaForSemanticSegmentation, SigmaModel, from_official
from vlmamba.models.sigma import PRESETS
from vlmamba.models.sigma.convert_sigma import config_from_official, published, rename

ENCODER = {"hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "state_size": 2}
STAGES = ["stage1", "stage2", "stage3"]
KEYS = sorted((golden.FOLDER / "sigma-keys").glob("*.json"))
PARAMETERS = {"tiny": 48287360, "small": 69811328, "base": 121414820}


def tiny(**changes) -> SigmaConfig:
    encoder = {**PRESETS["tiny"]["backbone_config"], **ENCODER, "out_features": STAGES}
    sizes = {"decoder_depths": [1, 2], "num_labels": 5, "fusion_state_size": 2, "decoder_state_size": 2, "reduction": 4}
    return SigmaConfig(**{"backbone_config": encoder, **sizes, **changes})


def pair(height: int = 32, width: int = 32, batch: int = 2) -> dict[str, torch.Tensor]:
    return dict(zip(("pixel_values", "pixel_values_x"), torch.randn(2, batch, 3, height, width), strict=True))


@pytest.mark.parametrize("name", golden.names("sigma-full"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("sigma", fixture.weights, fixture.arguments)
    rgb, x = fixture.io["input.rgb"], fixture.io["input.x"]
    with torch.no_grad():
        out = model(pixel_values=rgb, pixel_values_x=x, labels=fixture.io["input.label"])
        maps = model.sigma(rgb, x).feature_maps
        fixture.check(model(pixel_values=x, pixel_values_x=rgb).logits, "output.logits_swapped_inputs")
    fixture.check(out.logits, "output.logits")
    fixture.check(out.loss.view(1), "output.loss_ce_ignore255")
    for i, fused in enumerate(maps):
        fixture.check(fused.permute(0, 2, 3, 1), f"inter.backbone.channel_attn_mamba.{i}")


@pytest.mark.parametrize("name", golden.names("sigma-decoder"))
def test_official_outputs_of_the_decoder_are_met(name):
    fixture = golden.load(name)
    given = fixture.arguments
    config = config_from_official(
        {"dims": given["embed_dim"], "decoder_depths": given["depths"], "num_classes": given["num_classes"]}
    )
    model = SigmaForSemanticSegmentation(config).eval()
    renamed = rename({f"decode_head.{key}": v for key, v in fixture.weights.items()}, config, "semantic-segmentation")
    rest = model.load_state_dict(renamed, strict=False)
    assert not rest.unexpected_keys and all(key.startswith("sigma.") for key in rest.missing_keys)
    with torch.no_grad():
        x = model.classifier(model.decoder([fixture.io[f"input.feat{i}"].permute(0, 2, 3, 1) for i in range(4)]))
    fixture.check(x.permute(0, 3, 1, 2), "output.logits_x4")


@pytest.mark.parametrize("path", KEYS, ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    with torch.device("meta"):
        shapes = {key: torch.empty(shape) for key, (shape, _) in json.loads(path.read_text()).items()}
        config = published(shapes, None)
        model = SigmaForSemanticSegmentation(config)
    assert published(shapes, path.stem.removeprefix("sigma_")).to_dict() == config.to_dict()
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "semantic-segmentation").items()} == ours


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_number_of_parameters(preset):
    with torch.device("meta"):
        model = SigmaForSemanticSegmentation(SigmaConfig(num_labels=9, **PRESETS[preset]))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[preset]


def test_defaults_are_the_tiny_model_and_official_defaults_too():
    expected = SigmaConfig(**PRESETS["tiny"], num_labels=40).to_dict()
    assert SigmaConfig(num_labels=40).to_dict() == expected == config_from_official({}).to_dict()


def test_the_decoders_drop_path_is_the_official_one():
    rates = SigmaConfig().decoder_drop_path_rates
    official = [0.1 * i / 15 for i in range(12)]
    assert [len(r) for r in rates] == [4, 4, 4]
    assert torch.allclose(torch.tensor(sum(rates, [])), torch.tensor(official))
    model = SigmaForSemanticSegmentation(tiny(decoder_drop_path_rate=0.2))
    assert [[block.drop_path.p for block in stage] for stage in model.decoder.stages] == [[0.0], [0.1, 0.2]]


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (16, 23), (75, 33)])
def test_images_of_any_size_one_by_one_or_together(size):
    model = SigmaForSemanticSegmentation(tiny()).eval()
    images = pair(*size)
    with torch.no_grad():
        logits = model(**images).logits
        alone = model(**{name: pixels[1:] for name, pixels in images.items()}).logits
    assert logits.shape == (2, 5, *size)
    assert_close("alone", logits[1:], alone)


@pytest.mark.parametrize("auto", [AutoModelForSemanticSegmentation, SigmaForSemanticSegmentation])
def test_a_saved_model_is_the_same(tmp_path, auto):
    model = SigmaForSemanticSegmentation(tiny()).eval()
    model.save_pretrained(tmp_path)
    again, images = auto.from_pretrained(tmp_path), pair()
    assert type(again) is SigmaForSemanticSegmentation and type(AutoConfig.from_pretrained(tmp_path)) is SigmaConfig
    assert torch.equal(again(**images).logits, model(**images).logits)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is SigmaModel
    for ours, theirs in zip(encoder(**images).feature_maps, model.sigma(**images).feature_maps, strict=True):
        assert torch.equal(ours, theirs)
    classes = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert classes["AutoModelForSemanticSegmentation"] == "vlmamba_classes.SigmaForSemanticSegmentation"


def test_half_precision_keeps_the_state_matrices(tmp_path):
    SigmaForSemanticSegmentation(tiny()).save_pretrained(tmp_path)
    model = SigmaForSemanticSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kinds = {name.rpartition(".")[2]: p.dtype for name, p in model.named_parameters() if "scans" in name}
    assert kinds["A_log"] == torch.float32 and kinds["D"] == torch.bfloat16
    with torch.no_grad():
        assert torch.isfinite(model(**pair()).logits).all()


def test_all_learn_with_activations_checkpointed_or_not():
    model = SigmaForSemanticSegmentation(tiny()).train()
    images, labels = pair(), torch.randint(0, 5, (2, 32, 32))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        for module in model.modules():
            if hasattr(module, "mode") and hasattr(module, "p"):
                module.p = 0.0  # nothing left to chance
        model(**images, labels=labels).loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert_close(f"d{name}", gradients[1][name], gradient)


def test_pixels_with_the_ignored_label_have_no_say():
    model = SigmaForSemanticSegmentation(tiny()).eval()
    images, labels = pair(), torch.randint(0, 5, (2, 32, 32))
    labels[:, :16] = 255
    out = model(**images, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :, 16:], labels[:, 16:])
    assert_close("loss", out.loss, expected)


def test_what_is_wrong_is_said_in_one_line():
    model, images = SigmaForSemanticSegmentation(tiny()), pair()
    for wrong, words in (
        ({"pixel_values_x": images["pixel_values_x"][:, :1]}, r"pixel_values_x has shape \(2, 1, 32, 32\), expected"),
        ({"pixel_values_x": images["pixel_values_x"][..., :16]}, "expected as many images of the same height"),
        ({"pixel_values": images["pixel_values"].byte()}, "pixel_values has dtype torch.uint8, expected"),
        ({name: pixels[..., :2, :2] for name, pixels in images.items()}, "expected .* H and W at least 4"),
        ({"labels": torch.zeros(2, 8, 8).long()}, r"labels has shape \(2, 8, 8\), .*expected integers of \(2, 32, 32"),
        ({"labels": torch.zeros(2, 32, 32)}, "labels has shape .*, torch.float32, expected integers"),
    ):
        with pytest.raises(ValueError, match=words):
            model(**{**images, **wrong})
    for changes, words in (
        ({"decoder_depths": [1]}, "decoder_depths has 1 entries, expected one for each of the 3 maps"),
        ({"fusion_state_size": 0}, "fusion_state_size is 0, expected a positive integer"),
        ({"expand": 0}, "expand is 0, expected a positive factor"),
        ({"backbone_config": {"model_type": "mamba"}}, "model_type is 'mamba', expected that of a backbone"),
    ):
        with pytest.raises(StrictDataclassError, match=words):
            tiny(**changes)


def test_official_arguments_and_weights_that_do_not_fit_are_named():
    for arguments, words in (
        ({"deep_supervision": True}, "sigma: deep_supervision is True, expected False"),
        ({"mlp_ratio": 4.0}, "sigma: mlp_ratio is 4.0, expected 0.0"),
        ("huge", "sigma has no preset 'huge'; expected one of tiny, small, base"),
        (None, "the encoder is that of none of tiny, small, base"),
    ):
        with pytest.raises(ValueError, match=words):
            from_official("sigma", {"something": torch.zeros(1)}, arguments)
    with pytest.raises(ValueError, match="unexpected backbone.cross_mamba.0"):
        from_official("sigma", {"backbone.cross_mamba.0": torch.zeros(1)}, {"dims": 8, "depths": [1, 1]})


def test_a_backbone_of_transformers_serves_too():
    swin = SwinConfig(image_size=32, embed_dim=12, depths=[1, 1, 1], num_heads=[1, 2, 4], window_size=4)
    swin.out_features = STAGES
    model = SigmaForSemanticSegmentation(tiny(backbone_config=swin)).eval()
    with torch.no_grad():
        assert model(**pair()).logits.shape == (2, 5, 32, 32)


def test_fresh_weights_are_the_published_initialisation():
    model = SigmaForSemanticSegmentation(tiny())
    for name, parameter in model.named_parameters():
        if name.endswith((".D", "scale.weight")):
            assert (parameter == 1).all(), name
        elif ".dt_projs." in name and name.endswith("bias"):
            steps = torch.nn.functional.softplus(parameter)
            assert steps.min() > 9e-4 and steps.max() < 0.11, name
        elif name.endswith("A_log"):
            states = torch.arange(1, parameter.shape[-1] + 1).log()
            assert torch.allclose(parameter, states.expand_as(parameter)), name
        elif name.endswith("in_proj.weight"):
            assert 0.01 < parameter.std() < 0.03, name
