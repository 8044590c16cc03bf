# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from tests import golden
from vlmamba import VimConfig, VimForImageClassification, VimModel, from_official
from vlmamba.layers.rope import rotary_table, rotated
from vlmamba.models.vim.convert_vim import config_from_official, rename
from vlmamba.scans import get_scan
from vlmamba.scans.content import shuffled, take


def tiny(**changes) -> VimConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "state_size": 4}
    return VimConfig(**{**sizes, "num_labels": 5, **changes})


@pytest.mark.parametrize("name", golden.names("vim-"))
def test_official_outputs_are_met(name):
    fixture = golden.load(name)
    model = from_official("vim", fixture.weights, fixture.arguments)
    with torch.no_grad():
        fixture.check(model(pixel_values=fixture.io["pixel_values"]).logits, "logits")


@pytest.mark.parametrize("path", golden.published_keys("vim_"), ids=lambda p: p.stem)
def test_every_key_of_a_published_model_finds_its_place(path):
    published = json.loads(path.read_text())
    size = {"tiny": 192, "small": 384, "base": 768}[path.stem.split("_")[1]]
    stride = 8 if "stride8" in path.stem else 16
    config = config_from_official({"embed_dim": size, "stride": stride, "final_pool_type": "mean"})
    with torch.device("meta"):
        model = VimForImageClassification(config)
        shapes = {key: torch.empty(shape) for key, shape in published["state_dict"].items()}
    ours = {key: v.shape for key, v in model.state_dict().items()}
    assert {key: v.shape for key, v in rename(shapes, config, "image-classification").items()} == ours
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"bimamba_type": "v1"},
        {"bimamba_type": "none", "if_cls_token": False, "final_pool_type": "none"},
        {"use_middle_cls_token": False},
        {"if_cls_token": False, "final_pool_type": "max", "img_size": (32, 48)},
        {"if_abs_pos_embed": False, "final_pool_type": "all", "if_cls_token": False},
    ],
    ids=str,
)
def test_options_off_the_published_path_run_and_train(arguments):
    config = config_from_official(
        {
            "img_size": 32,
            "patch_size": 8,
            "stride": 8,
            "depth": 2,
            "embed_dim": 16,
            "num_classes": 3,
            **arguments,
        }
    )
    model = VimForImageClassification(config)
    size = config.image_size if isinstance(config.image_size, tuple) else (config.image_size,) * 2
    logits = model(torch.randn(2, 3, *size)).logits
    assert logits.shape == ((2, 16, 3) if config.pooling == "none" else (2, 3))
    logits.square().sum().backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert not unused


@pytest.mark.parametrize("size", [[70, 67], 71], ids=str)
def test_official_models_of_an_odd_size_leave_out_what_no_whole_patch_has(size):
    fixture = golden.load("vim-midcls")
    odd = from_official("vim", fixture.weights, {**fixture.arguments, "img_size": size})
    whole = from_official("vim", fixture.weights, fixture.arguments)
    sides = size if isinstance(size, list) else [size] * 2
    pixels = torch.randn(1, 3, *sides)
    torch.testing.assert_close(odd(pixels).logits, whole(pixels[:, :, :64, :64]).logits)
    assert odd.config.grid(*sides) == (8, 8) and not odd.config.pad_images and whole.config.pad_images


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("token", ["first", "none"])
def test_tokens_turn_before_every_layer(residual, token):
    arguments = {"if_cls_token": token == "first", "use_middle_cls_token": False, "if_rope_residual": residual}
    small = {"img_size": 32, "patch_size": 8, "stride": 8, "depth": 3, "embed_dim": 16, "num_classes": 3}
    config = config_from_official({**small, **arguments, "if_rope": True, "pt_hw_seq_len": 5})
    model = VimForImageClassification(config).eval()
    table = rotary_table((4, 4), (4, 4), 16, length=5)
    still = torch.tensor([1.0, 0.0]).view(2, 1, 1).expand(2, int(token == "first"), 16)  # the class token's
    whole = torch.cat([still, table], dim=1)
    vim, pixels = model.vim, torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        hidden, stream = vim.embeddings(pixels)[0], 0.0
        for i, layer in enumerate(vim.layers):  # as the official model, which keeps the two apart
            hidden = rotated(hidden, whole)
            stream = (rotated(stream, whole) if residual and i else stream) + hidden
            paths = config.scan_of_layer(i).paths(1, hidden.shape[1])
            hidden = layer.mixer(layer.norm(stream), paths)
        expected = vim.norm(stream + hidden)
        torch.testing.assert_close(vim(pixels).last_hidden_state, expected)
    tables = {"rope.freqs_cos": table[0], "rope.freqs_sin": table[1] + 0.1}
    assert list(rename(tables, config, "image-classification")) == ["rope.freqs_sin"]  # what is not ours is reported


def test_arguments_without_effect_are_taken():
    mixer = {"dt_min": 0.01, "dt_init": "constant", "use_fast_path": True, "d_state": 4}
    assert config_from_official({"ssm_cfg": mixer}).state_size == 4
    assert config_from_official({"bimamba_type": "none", "ssm_cfg": {"use_fast_path": False}}).scan == "raster"


def test_unsupported_arguments_and_foreign_keys_are_errors():
    for arguments, words in (
        ({"if_bidirectional": True}, "if_bidirectional is True"),
        ({"ssm_cfg": {"bias": True}}, "ssm_cfg has bias, expected d_state, d_conv, expand, dt_rank"),
        ({"ssm_cfg": {"use_fast_path": False}}, "use_fast_path is False, expected True"),
        ({"patch_size": [8, 4]}, r"patch_size is \[8, 4\], expected one side"),
    ):
        with pytest.raises(ValueError, match=words):
            from_official("vim", {}, arguments)
    fixture = golden.load("vim-midcls")
    weights = dict(fixture.weights)
    weights["layers.0.mixer.extra"] = weights.pop("norm_f.weight")
    with pytest.raises(ValueError, match=r"missing vim\.norm\.weight; unexpected layers\.0\.mixer\.extra"):
        from_official("vim", weights, fixture.arguments)
    with pytest.raises(ValueError, match="unknown family 'resnet'; expected one of .*, mamba2, .*vmamba"):
        from_official("resnet", {}, {})


def test_missing_keys_are_listed_for_every_kind_of_model():
    small = {"img_size": 32, "patch_size": 8, "stride": 8, "depth": 1, "embed_dim": 16}
    for options in ({"use_double_cls_token": True}, {"bimamba_type": "v1"}):
        with pytest.raises(ValueError, match=r"missing .*embeddings\.class_tokens; missing"):
            from_official("vim", {}, {**small, **options})
    with pytest.raises(ValueError, match="final_pool_type is 'avg', expected one of none, mean, max, all"):
        from_official("vim", {}, {"final_pool_type": "avg"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": 0}, "patch_size is 0"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"image_size": [32]}, r"image_size is \[32\]"),
        ({"image_size": 4}, "image_size is 4, expected at least patch_size 8"),
        ({"time_step_rank": "foo"}, "time_step_rank is 'foo'"),
        ({"scan": "nope"}, "unknown scan 'nope'"),
        ({"rotary": "updates", "class_token": "both"}, "rotary is 'updates', expected 'none' with two class tokens"),
        ({"rotary": "stream", "hidden_size": 18}, "hidden_size is 18, expected a multiple of 4 with rotary"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_errors_at_construction(change, words):
    with pytest.raises(Exception, match=words):
        tiny(**change)


@pytest.mark.parametrize("class_token", ["middle", "first", "both", "none"])
def test_save_and_load_round_trip(tmp_path, class_token):
    model = VimForImageClassification(tiny(class_token=class_token, layer_scale_init_value=0.1)).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(pixels).logits, again(pixels).logits)
    headless = AutoModel.from_pretrained(tmp_path)
    assert isinstance(headless, VimModel)
    assert torch.equal(headless(pixels).pooler_output, model.vim(pixels).pooler_output)


def test_other_image_sizes_resize_the_positions():
    model = VimModel(tiny(class_token="both")).eval()
    out = model(torch.randn(1, 3, 40, 64), output_hidden_states=True)
    assert out.last_hidden_state.shape == (1, 5 * 8 + 2, 32) and len(out.hidden_states) == 3
    assert model.patch_tokens(out.last_hidden_state, (5, 8)).shape == (1, 40, 32)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 3, 4, 32), (3, 32, 32)])
def test_images_of_a_wrong_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"pixel_values has shape"):
        VimModel(tiny())(torch.zeros(shape))


def test_a_wrong_config_type_is_an_error_at_construction():
    with pytest.raises(Exception, match="hidden_size"):
        VimConfig(hidden_size="wide")


def test_a_hidden_patch_has_no_influence():
    torch.manual_seed(0)
    for class_token in ("middle", "both", "none"):
        model = VimForImageClassification(tiny(class_token=class_token)).double().eval()
        pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        mask = torch.rand(2, 16) > 0.3
        mask[:, 5] = False
        other = pixels.clone()
        other[:, :, 8:16, 8:16] += 1  # patch 5
        assert torch.equal(model(pixels, token_mask=mask).logits, model(other, token_mask=mask).logits)
        assert not torch.equal(model(pixels).logits, model(other).logits)
        assert torch.equal(model(pixels, token_mask=torch.ones_like(mask)).logits, model(pixels).logits)


def test_hidden_patches_at_the_end_are_as_if_the_image_ended_before():
    torch.manual_seed(0)
    model = VimModel(tiny(class_token="none", use_position_embeddings=False, scan="raster")).double().eval()
    pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    mask = (torch.arange(16) < 8)[None]
    upper = model(pixels[:, :, :16])
    torch.testing.assert_close(model(pixels, token_mask=mask).last_hidden_state[:, :8], upper.last_hidden_state)
    torch.testing.assert_close(model(pixels, token_mask=mask).pooler_output, upper.pooler_output)


@pytest.mark.parametrize("class_token", ["middle", "both", "none"])
def test_an_order_of_its_own_for_each_image(class_token):
    torch.manual_seed(0)
    model = VimModel(tiny(class_token=class_token, use_position_embeddings=False)).double().eval()
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    order = shuffled(2, 16, torch.Generator().manual_seed(1))
    # the image with its patches arranged so, read row by row
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)
    arranged = torch.stack([one[:, own] for one, own in zip(patches, order, strict=True)])
    arranged = arranged.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)
    expected = model.patch_tokens(model(arranged).last_hidden_state, (4, 4))
    found = model.patch_tokens(model(pixels, token_order=order).last_hidden_state, (4, 4))
    torch.testing.assert_close(take(found, order), expected)
    assert not torch.allclose(found, model.patch_tokens(model(pixels).last_hidden_state, (4, 4)))


def test_masks_and_orders_of_a_wrong_shape_are_named():
    model = VimModel(tiny())
    with pytest.raises(ValueError, match=r"token_mask has shape \(1, 4\) and dtype torch.bool, expected \(1, 16\)"):
        model(torch.zeros(1, 3, 32, 32), token_mask=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"token_order has .* dtype torch.int32, expected \(1, 16\) and torch.int64"):
        model(torch.zeros(1, 3, 32, 32), token_order=torch.zeros(1, 16, dtype=torch.int32))


@pytest.mark.parametrize("scan", ["cross_scan", ["raster", "hilbert"], "zigma8"])
def test_a_grid_is_scanned_in_any_order_in_every_layer_or_in_turn(scan):
    torch.manual_seed(0)
    layers = [VimModel(tiny(class_token="none", scan=scan, scan_schedule=s)).eval() for s in ("all", "cycle")]
    for model, counts in zip(layers, ([get_scan(scan).num_paths] * 2, [1, 1]), strict=True):
        assert [len(layer.mixer.directions) for layer in model.layers] == counts
        assert torch.isfinite(model(torch.randn(1, 3, 32, 48)).last_hidden_state).all()
    with pytest.raises(Exception, match="unknown scan 'hilbrt' .did you mean 'hilbert'"):
        tiny(scan="hilbrt")
    with pytest.raises(Exception, match="scan is 'vivim3', of kind 'video'; expected one of kind grid, parts, repeats"):
        tiny(scan="vivim3")
