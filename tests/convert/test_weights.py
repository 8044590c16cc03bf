# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch

from tests import golden
from vlmamba import from_official
from vlmamba.convert import list_families, list_presets
from vlmamba.convert.weights import closest_family
from vlmamba.models import ENCODERS


def published(name: str) -> dict[str, torch.Tensor]:
    """Zeros under the names of a published model."""
    keys = json.loads((golden.FOLDER / "keys" / f"{name}.json").read_text())
    return {key: torch.zeros(shape) for key, shape in keys["state_dict"].items()}


def test_the_published_model_is_found_by_its_shapes():
    weights = published("vim_tiny_patch16_224_midclstok")
    model = from_official("vim", weights)
    assert model.config.hidden_size == 192 and model.config.num_labels == 1000
    assert from_official("vim", weights, "tiny").config.to_dict() == model.config.to_dict()
    assert model.config.id2label[1] == "goldfish, Carassius auratus"


def test_published_models_that_only_their_names_tell_apart_are_not_guessed():
    weights = published("local_vim_tiny_middle_cls_token")
    del weights["cls_token"]
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    with pytest.raises(ValueError, match="local_vim_tiny and local_vim_tiny_wo_search have these shapes"):
        from_official("localvim", weights)


def test_fine_tuned_classes_are_counted():
    weights = published("vim_tiny_patch16_224_midclstok")
    weights["head.weight"], weights["head.bias"] = torch.zeros(7, 192), torch.zeros(7)
    assert from_official("vim", weights).config.num_labels == 7


def test_weights_of_another_size_or_family_say_which_keys_differ():
    weights = published("vim_tiny_patch16_224_midclstok")
    words = r"class_tokens has shape \(1, 1, 192\), expected \(1, 1, 384\).* and \d+ more of another shape"
    with pytest.raises(ValueError, match=words):
        from_official("vim", weights, "small")
    del weights["norm_f.weight"]
    with pytest.raises(ValueError, match=r"no published model fits, nearest is 'tiny': missing vim\.norm\.weight$"):
        from_official("vim", weights)
    with pytest.raises(ValueError, match=r"missing .*; and \d+ more missing; .*; its names are those of 'vim'$"):
        from_official("vmamba", weights)
    assert closest_family({"something": torch.zeros(1)}) is None


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="vim has no preset 'huge'; expected one of tiny, tiny_stride8"):
        from_official("vim", {}, "huge")
    with pytest.raises(ValueError, match="unknown family 'resnet'; expected one of"):
        list_presets("resnet")
    with pytest.raises(ValueError, match="arguments is None, expected the official constructor's for mamba"):
        from_official("mamba", {})


def test_impossible_sizes_are_one_line():
    with pytest.raises(ValueError, match="^from_official\\('vim'\\): .*num_hidden_layers is -1, expected a positive"):
        from_official("vim", {}, {"depth": -1})


def test_every_encoder_has_published_models():
    assert set(ENCODERS) < set(list_families())
    for family in ENCODERS:
        assert list_presets(family), family


@pytest.mark.parametrize("name", ["vim-midcls", "mamba1-lm", "cobra-vlm"])
def test_a_model_can_share_the_memory_of_the_checkpoint(name):
    fixture = golden.load(name)
    family = {"mamba1": "mamba"}.get(name.split("-")[0], name.split("-")[0])
    copied = from_official(family, fixture.weights, fixture.arguments).state_dict()
    shared = from_official(family, fixture.weights, fixture.arguments, share_memory=True)
    assert not shared.training and shared.dtype == torch.float32
    assert all(torch.equal(tensor, copied[key]) for key, tensor in shared.state_dict().items())
    places = {tensor.data_ptr() for tensor in fixture.weights.values()}
    assert {parameter.data_ptr() for parameter in shared.parameters()} <= places
    assert not places & {tensor.data_ptr() for tensor in copied.values()}
