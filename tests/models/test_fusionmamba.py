# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from accelerate import disk_offload
from transformers import AutoConfig, AutoModel, AutoModelForImageToImage

from tests import golden
from tests.close import VALUE, assert_close
from vlmamba import FusionMambaConfig, FusionMambaForImageFusion, from_official
from vlmamba.models.fusionmamba import PRESETS
from vlmamba.models.fusionmamba.convert_fusionmamba import config_from_official, published, rename

SIZES = {"hidden_sizes": [8, 16, 32], "depths": [1, 2, 1], "state_size": 2}
# key lists of published models, and what they are called here
KEYS = {"default_2292": "base", "ct_mri_tiny_2212": "tiny"}
FOUND = sorted((golden.FOLDER / "fusionmamba-keys").glob("*.json"))


def tiny(**changes) -> FusionMambaForImageFusion:
    torch.manual_seed(0)
    return FusionMambaForImageFusion(FusionMambaConfig(**{**SIZES, **changes})).eval()


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.rand(*shape, dtype=dtype) for name in ("pixel_values", "pixel_values_x")}


@pytest.mark.parametrize("name", golden.names("fusionmamba-full"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    first, second = fixture.io["input.1"], fixture.io["input.2"]
    for arguments in (fixture.arguments, None):
        model = from_official("fusionmamba", fixture.weights, arguments)
        with torch.no_grad():
            fixture.check(model(pixel_values=first, pixel_values_x=second).fused, "output")
            fixture.check(model(pixel_values=second, pixel_values_x=first).fused, "output.swapped")
    wrapped = {f"module.{key}": v for key, v in fixture.weights.items()}
    again = from_official("fusionmamba", wrapped, fixture.arguments).state_dict()
    assert all(torch.equal(again[key], v) for key, v in model.state_dict().items())


def sizes_without_dead_weights(shapes: dict[str, torch.Tensor]) -> int:
    """Numbers in official weights, but for the fusion before the first stage, one layer in all, and half of another."""
    live = {key: v for key, v in shapes.items() if not key.startswith("Cross_block.0.") and "lastconv" not in key}
    return sum(v.numel() // (2 if "in_proj2" in key else 1) for key, v in live.items())


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    preset = KEYS[path.stem]
    with torch.device("meta"):
        shapes = {key: torch.empty(shape) for key, (shape, _) in json.loads(path.read_text()).items()}
        config = published(shapes, None)
        model = FusionMambaForImageFusion(config)
    assert config.to_dict() == published(shapes, preset).to_dict() == FusionMambaConfig(**PRESETS[preset]).to_dict()
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "image-fusion").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == sizes_without_dead_weights(shapes)


def test_the_official_defaults_are_the_published_model():
    assert config_from_official({}).to_dict() == FusionMambaConfig(**PRESETS["base"]).to_dict()
    assert config_from_official({"dims": 8, "depths": [1, 1, 1, 1]}).hidden_sizes == [8, 16, 32, 64]


def test_options_without_a_counterpart_and_foreign_keys_are_errors():
    with pytest.raises(ValueError, match=r"dims_decoder is \[8, 16\], expected \[16, 8\]"):
        config_from_official({"dims": [8, 16], "dims_decoder": [8, 16], "depths": [1, 1]})
    with pytest.raises(ValueError, match="d_state is 8, expected 16"):
        config_from_official({"d_state": 8})
    with pytest.raises(ValueError, match="has no preset 'huge'; expected one of base, tiny"):
        from_official("fusionmamba", {}, "huge")
    with pytest.raises(ValueError, match="the weights are not those of a FusionMamba"):
        from_official("fusionmamba", {"layers.0.weight": torch.zeros(1)})
    sizes = {"dims": [8, 16], "dims_decoder": [16, 8], "depths": [1, 1], "depths_decoder": [1, 1]}
    with pytest.raises(ValueError, match="unexpected layers.0.blocks.0.op.other"):
        from_official("fusionmamba", {"layers.0.blocks.0.op.other": torch.zeros(1)}, sizes)


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (1, 40), (19, 29), (33, 16)], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_channels": 3, "own_gates": True, "scan": "cross_scan"}], ids=str)
def test_the_fused_image_has_the_size_of_the_pair(options, size):
    model = tiny(**options)
    images = pair(2, model.config.num_channels, *size)
    with torch.no_grad():
        fused = model(**images).fused
    assert fused.shape == images["pixel_values"].shape and torch.isfinite(fused).all()


def test_pairs_of_a_batch_do_not_see_each_other():
    model, images = tiny().double(), pair(3, 1, 24, 20, dtype=torch.float64)
    with torch.no_grad():
        together = model(**images).fused
        alone = [model(**{key: v[i : i + 1] for key, v in images.items()}).fused for i in range(3)]
    assert_close("alone", torch.cat(alone), together, VALUE)


def test_both_images_and_every_trained_parameter_matter():
    model = tiny().train()
    images = {key: v.requires_grad_() for key, v in pair(2, 1, 32, 32).items()}
    (model(**images).fused ** 2).sum().backward()
    assert all(v.grad.abs().max() > 0 for v in images.values())
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all(name.endswith("base_mask") for name in without)


def test_checkpointing_changes_no_gradient():
    images, gradients = pair(1, 1, 32, 32, dtype=torch.float64), []
    for checkpointed in (False, True):
        model = tiny().double().train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        (model(**images).fused ** 2).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_close("gradient", checkpointed, plain, VALUE)


def test_a_saved_model_is_the_same_when_it_is_loaded(tmp_path):
    model, images = tiny(own_gates=True), pair(1, 1, 20, 24)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), FusionMambaConfig)
    for auto in (FusionMambaForImageFusion, AutoModelForImageToImage, AutoModel):
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is FusionMambaForImageFusion
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with torch.no_grad():
            assert torch.equal(loaded(**images).fused, model(**images).fused)
    assert isinstance(model(**images, return_dict=False), tuple)


def test_offloaded_weights_are_brought_in(tmp_path):
    model, images = tiny(), pair(1, 1, 16, 16)
    with torch.no_grad():
        expected = model(**images).fused
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
        assert torch.equal(model(**images).fused, expected)


def test_half_precision_stays_near():
    model, images = tiny(), pair(1, 1, 32, 32)
    with torch.no_grad():
        expected = model(**images).fused
        fused = model.to(torch.bfloat16)(**{key: v.to(torch.bfloat16) for key, v in images.items()}).fused
    assert fused.dtype == torch.bfloat16
    assert_close("bfloat16", fused, expected, VALUE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_sizes": [8, 16, 24]}, r"hidden_sizes is \[8, 16, 24\], expected at least 8, and to double"),
        ({"hidden_sizes": [4, 8, 16]}, r"hidden_sizes is \[4, 8, 16\], expected at least 8"),
        ({"depths": [1, 1]}, r"depths is \[1, 1\], expected 3 numbers"),
        ({"decoder_depths": [1, 0, 1]}, r"decoder_depths is \[1, 0, 1\], expected positive integers"),
        ({"patch_size": 3}, "hidden_sizes begins with 8, expected a multiple of patch_size 3"),
        ({"conv_kernel": 4}, "conv_kernel is 4, expected an odd side"),
        ({"expand": 0}, "expand is 0, expected a positive inner width"),
        ({"scan": "es2d"}, "unknown scan 'es2d'"),
        ({"scan": "vivim3"}, "scan is 'vivim3', of kind 'video'"),
        ({"hidden_act": "cosine"}, "hidden_act is 'cosine'"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0, expected 0 to below 1"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        FusionMambaConfig(**{**SIZES, **change})


def test_images_that_are_no_pair_are_one_clear_line():
    model = tiny()
    with pytest.raises(ValueError, match=r"pixel_values has shape \(1, 3, 8, 8\), expected \[batch, 1, H, W\]"):
        model(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"has shape \(1, 1, 0, 8\), expected .* with positive H and W"):
        model(torch.rand(1, 1, 0, 8), torch.rand(1, 1, 0, 8))
    with pytest.raises(ValueError, match="expected as many images of the same height and width"):
        model(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 12))
    with pytest.raises(ValueError, match=r"pixel_values_x has dtype torch.uint8, expected floating point"):
        model(torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_a_fusion_is_learned():
    model = tiny().train()
    images = {key: v.expand(-1, -1, 16, 16) for key, v in pair(4, 1, 1, 1).items()}
    wanted = torch.maximum(*images.values())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(**images).fused - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10, losses
