# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from transformers import AutoModel, AutoModelForImageToImage

from tests import golden
from tests.close import GRADIENT, assert_close
from vlmamba import PSRBenConfig, PSRBenForImageFusion, from_official
from vlmamba.models.psrben.convert_psrben import config_from_official, rename

PUBLISHED = golden.FOLDER / "psrben-real-wv3" / "config.json"


def tiny(**changes) -> PSRBenConfig:
    return PSRBenConfig(**{"num_channels": 3, "hidden_size": 4, "state_size": 3, "scale_factor": 2, **changes})


def pair(config: PSRBenConfig, *shape: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random images: `shape` is batch, height and width of the multispectral one."""
    batch, height, width = shape
    scale = config.scale_factor
    return {
        "pixel_values": torch.rand(batch, config.num_channels, height, width, dtype=dtype),
        "pixel_values_x": torch.rand(batch, config.num_channels_x, scale * height, scale * width, dtype=dtype),
    }


def official_names(model: PSRBenForImageFusion) -> dict[str, torch.Tensor]:
    """A model's weights by the names that the official class gives them, made from the other end than `rename`."""
    names, orders, bands = {}, ("", "_c", "_b", "_d"), ("", "_b")
    outer = {
        "upsample": "upsample.upsamle.0",
        "stem": "raise_ms_dim.0",
        "stem_x": "raise_pan_dim.0",
        "attention.in_proj": "spe_attn.block.0",
        "attention.norm": "spe_attn.block.1",
        "attention.out_proj": "spe_attn.block.3",
        "head.0": "to_hrms.0",
        "head.2": "to_hrms.2",
        **{f"downsamples.{i}.conv": f"stage{i}.sample.down.0" for i in range(2)},
        **{f"upsamples.{i}.expansion": f"stage{i + 2}.sample.up.0" for i in range(2)},
        **{f"upsamples.{i}.depthwise": f"stage{i + 2}.sample.conv.0" for i in range(2)},
        **{f"upsamples.{i}.pointwise": f"stage{i + 2}.sample.conv.1" for i in range(2)},
    }
    for i in range(5):
        stage = f"stage{i}.fm" if i < 4 else "stage4"
        outer[f"stages.{i}.out_proj"] = f"{stage}.out_proj"
        for stream, end in (("spe", ""), ("spa", "_x")):
            outer[f"stages.{i}.cross{end}.norm"] = f"{stage}.{stream}_cross_mamba.norm0"
            outer[f"stages.{i}.cross{end}.norm_x"] = f"{stage}.{stream}_cross_mamba.norm1"
            outer[f"stages.{i}.cross{end}.mixer"] = f"{stage}.{stream}_cross_mamba.block"
            outer[f"stages.{i}.layers{end}.0.norm"] = f"{stage}.{stream}_mamba_layers.0.norm"
            outer[f"stages.{i}.layers{end}.0.mixer"] = f"{stage}.{stream}_mamba_layers.0.block"
    outer["attention.mixer"] = "spe_attn.block.2"
    for key, tensor in model.state_dict().items():
        place, mixer, rest = key.partition(".mixer.")
        if not mixer:
            module, _, leaf = key.rpartition(".")
            names[f"{outer[module]}.{leaf}"] = tensor
            continue
        place = outer[f"{place}.mixer"]
        if rest.startswith("directions."):
            _, number, rest = rest.split(".", 2)
            end = (bands if place.startswith("spe_attn") else orders)[int(number)]
            part, dot, leaf = rest.partition(".")
            rest = f"A{end}_log" if part == "A_log" else f"{part}{end}{dot}{leaf}"
        names[f"{place}.{rest.replace('in_proj_x', 'in_proj_b')}"] = tensor
    return names


@pytest.mark.parametrize("name", golden.names("psrben-u2net"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("psrben", fixture.weights, fixture.arguments)
    seen = {}
    for part in ("stages.0", "attention", "downsamples.1"):
        model.get_submodule(part).register_forward_hook(lambda _, __, out, part=part: seen.update({part: out}))
    with torch.no_grad():
        out = model(pixel_values=fixture.io["input.ms"], pixel_values_x=fixture.io["input.pan"])
    fixture.check(out.fused, "output")
    fixture.check(seen["attention"], "inter.spe_attn")
    fixture.check(seen["stages.0"][1].permute(0, 3, 1, 2), "inter.stage0.fm.0")
    fixture.check(seen["downsamples.1"].permute(0, 3, 1, 2), "inter.stage1.0")  # of the spatial map, which comes last
    guessed = from_official("psrben", fixture.weights)
    assert guessed.config.to_dict() == model.config.to_dict()


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the list of published tensors is not here")
def test_every_key_of_the_published_model_finds_its_place():
    described = json.loads(PUBLISHED.read_text())
    published = {key: torch.empty(shape, device="meta") for key, (shape, _) in described["checkpoint_keys"].items()}
    config = config_from_official(described["args"])
    assert config.to_dict() == PSRBenConfig().to_dict()
    with torch.device("meta"):
        model = PSRBenForImageFusion(config)
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(published, config).items()} == ours
    assert sum(p.numel() for p in model.parameters()) == described["n_checkpoint_params"]


def test_official_names_find_their_places():
    model = PSRBenForImageFusion(tiny(state_size=8)).eval()
    images, names = pair(model.config, 1, 4, 4), official_names(model)
    for arguments in ({"dim": 4, "pan_dim": 1, "ms_dim": 3, "H": 8, "W": 8, "scale": 2}, None):
        loaded = from_official("psrben", names, arguments)
        assert torch.equal(loaded(**images).fused, model(**images).fused)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)], ids=str)
def test_images_of_any_size_are_sharpened(scale, size):
    model = PSRBenForImageFusion(tiny(scale_factor=scale)).eval()
    images = pair(model.config, 2, *size)
    fused = model(**images).fused
    assert fused.shape == (2, 3, scale * size[0], scale * size[1]) and fused.isfinite().all()
    (plain,) = model(**images, return_dict=False)
    assert torch.equal(plain, fused)


def test_labels_give_the_mean_absolute_error():
    model = PSRBenForImageFusion(tiny()).eval()
    images = pair(model.config, 2, 3, 3)
    fused = model(**images).fused
    out = model(**images, labels=fused + 0.5)
    assert_close("loss", out.loss, torch.tensor(0.5))
    assert torch.equal(out.fused, fused)
    with pytest.raises(ValueError, match=r"labels has shape \(2, 3, 6, 5\), expected \(2, 3, 6, 6\)"):
        model(**images, labels=fused[..., :5])


def test_every_image_is_fused_as_if_alone():
    model = PSRBenForImageFusion(tiny()).double().eval()
    images = pair(model.config, 3, 3, 4, dtype=torch.float64)
    together = model(**images).fused
    for i in range(3):
        alone = model(**{name: v[i : i + 1] for name, v in images.items()}).fused
        assert_close("fused", alone, together[i : i + 1])


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_channels_x": 2, "expand": 2, "conv_kernel": 2}, {"num_hidden_layers": 2, "negative_slope": 0.2}],
    ids=str,
)
def test_every_weight_is_trained(changes):
    model = PSRBenForImageFusion(tiny(**changes)).train()
    model(**pair(model.config, 2, 4, 6)).fused.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_checkpointing_changes_no_gradient():
    model = PSRBenForImageFusion(tiny()).double().train()
    images, gradients = pair(model.config, 1, 4, 3, dtype=torch.float64), []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**images).fused.sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in gradients[1].items():
        assert_close(name, gradient, gradients[0][name], GRADIENT)


def test_half_precision_is_near():
    model = PSRBenForImageFusion(tiny()).eval()
    images = pair(model.config, 1, 4, 4, dtype=torch.bfloat16)
    exact = model(**{name: v.float() for name, v in images.items()}).fused
    halved = PSRBenForImageFusion(tiny())
    halved.load_state_dict(model.state_dict())
    assert_close("fused", halved.to(torch.bfloat16).eval()(**images).fused, exact)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageToImage])
def test_saved_models_load_by_auto_classes(auto, tmp_path):
    model = PSRBenForImageFusion(tiny()).eval()
    images = pair(model.config, 1, 3, 3)
    model.save_pretrained(tmp_path)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is PSRBenForImageFusion and not any(report.values())
    assert torch.equal(loaded(**images).fused, model(**images).fused)
    halved = auto.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert halved.stages[0].cross.mixer.directions[0].A_log.dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)), "expected as many images of 2 times the height and width"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(1, 1, 8, 8)), r"pixel_values_x \(1, 1, 8, 8\), expected as many"),
        ((torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8, 8)), r"pixel_values has shape \(1, 1, 4, 4\), expected"),
        ((torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 8, 8).byte()), "pixel_values_x has dtype torch.uint8, expected"),
    ],
    ids=str,
)
def test_bad_pairs_are_one_line(images, words):
    with pytest.raises(ValueError, match=words) as error:
        PSRBenForImageFusion(tiny())(*images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": 0}, "scale_factor is 0, expected a positive integer"),
        ("wv3", "psrben has no preset 'wv3'"),
        (None, r"missing raise_ms_dim\.0\.weight, raise_pan_dim\.0\.weight, upsample\.upsamle\.0\.weight"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_an_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        from_official("psrben", {}, arguments)


def test_missing_and_foreign_keys_are_listed():
    names = official_names(PSRBenForImageFusion(tiny(state_size=8)))
    names["stage4.extra"] = names.pop("stage4.spe_cross_mamba.block.D_b")
    with pytest.raises(
        ValueError, match=r"missing stages\.4\.cross\.mixer\.directions\.2\.D; unexpected stages\.4\.ex"
    ):
        from_official("psrben", names)
