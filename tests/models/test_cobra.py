# SPDX-License-Identifier: Apache-2.0
"""Cobra as a configuration of the VLM: the official model's outputs, keys and published parts."""

import json

import pytest
import timm
import torch

from tests import golden
from tests.models.tiny import tiny_config
from vlmamba import VLMambaConfig, VLMambaForConditionalGeneration, from_official
from vlmamba.convert import list_presets
from vlmamba.convert.weights import differences
from vlmamba.models.vlmamba.convert_cobra import VISION_BACKBONES, complete, config_from_official, rename, vision_names

FIXTURES = golden.names("cobra-vlm")
NAME = FIXTURES[0]


def spliced(model: VLMambaForConditionalGeneration, fixture: golden.Golden) -> dict[str, torch.Tensor]:
    """The official sequence, all image tokens and then the text, as placeholders of ours."""
    ids, labels = fixture.io["input.ids"], fixture.io["input.labels"]
    images = ids.new_full((len(ids), model.config.image_seq_length), model.config.image_token_id)
    return {
        "input_ids": torch.cat([images, ids], 1),
        "pixel_values": torch.cat([fixture.io["input.dino"], fixture.io["input.siglip"]], 1),
        "labels": torch.cat([torch.full_like(images, -100), labels], 1),
    }


@pytest.fixture(scope="module", params=FIXTURES)
def official(request):
    fixture = golden.load(request.param)
    return fixture, from_official("cobra", fixture.weights, fixture.arguments)


@torch.no_grad()
def test_logits_and_loss_are_the_official_ones(official):
    fixture, model = official
    inputs = spliced(model, fixture)
    outputs = model(**inputs)
    fixture.check(outputs.logits, "output.logits")
    fixture.check(outputs.loss.view(1), "output.loss")
    features = model.get_image_features(inputs["pixel_values"])
    fixture.check(features.last_hidden_state, "inter.patch_features")
    fixture.check(torch.stack(list(features.pooler_output)), "inter.projected")


@torch.no_grad()
def test_text_alone_and_rows_without_an_image(official):
    """The official code puts rows without an image last and pads them behind; ours stay where they are."""
    fixture, model = official
    ids, labels = fixture.io["input.ids"], fixture.io["input.labels"]
    outputs = model(input_ids=ids, labels=labels)
    fixture.check(outputs.logits, "output.textonly_logits")
    fixture.check(outputs.loss.view(1), "output.textonly_loss")
    inputs = spliced(model, fixture)
    with_image = fixture.io["input.multimodal_indices"].tolist()
    without = [row for row in range(len(ids)) if row not in with_image]
    length = ids.shape[1]
    mask = torch.ones_like(inputs["input_ids"])
    for name, tokens, padding in (("input_ids", ids, 0), ("labels", labels, -100)):
        inputs[name][without, :length], inputs[name][without, length:] = tokens[without], padding
    mask[without, length:] = 0
    inputs["pixel_values"] = inputs["pixel_values"][with_image]
    outputs = model(**inputs, attention_mask=mask)
    mixed = fixture.io["output.mixed_logits"]
    rows = golden.Golden(fixture.name, {}, {}, {"images": mixed[: len(with_image)]})
    rows.io["texts"] = mixed[len(with_image) :, :length]
    rows.check(outputs.logits[with_image], "images")
    rows.check(outputs.logits[without, :length], "texts")
    fixture.check(outputs.loss.view(1), "output.mixed_loss")


@torch.no_grad()
def test_greedy_tokens_are_the_official_ones(official):
    fixture, model = official
    inputs = spliced(model, fixture)
    prompt = {"input_ids": inputs["input_ids"][:1], "pixel_values": inputs["pixel_values"][:1]}
    fixture.check(model(**prompt).logits[:, -1], "decode.prefill_logits_row0")
    expected = fixture.io["decode.greedy10_row0"]
    tokens = model.generate(**prompt, max_new_tokens=expected.shape[1], do_sample=False)
    assert tokens[:, prompt["input_ids"].shape[1] :].tolist() == expected.tolist()


def parts(weights: dict[str, torch.Tensor]) -> dict[str, dict]:
    """As in a published file: no vision tower, each part's names in a dict of its own."""
    found = {"projector": {}, "llm_backbone": {}}
    for key, tensor in weights.items():
        part, _, name = key.partition(".")
        if part in found:
            found[part][name] = tensor
    return found


def encoder(weights: dict[str, torch.Tensor], word: str) -> dict[str, torch.Tensor]:
    """timm's weights of one encoder."""
    return {key.split("_featurizer.")[1]: tensor for key, tensor in weights.items() if f".{word}_featurizer." in key}


def test_published_parts_and_timms_weights_make_the_same_model(official):
    fixture, model = official
    weights = {"model": parts(fixture.weights)}
    for word in ("siglip", "dino"):
        weights |= vision_names(encoder(fixture.weights, word))
    again = from_official("cobra", weights, {"model": fixture.arguments})
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_encoders_of_another_image_size_are_fitted(official):
    """timm's DINOv2 is published for 518 pixels; classifiers stay behind."""
    fixture, _ = official
    sizes = {"embed_dim": 16, "depth": fixture.arguments["vision"]["depth_d"], "num_heads": 2}
    larger = timm.create_model("vit_large_patch14_reg4_dinov2", img_size=84, num_classes=5, **sizes).state_dict()
    weights = {key: tensor for key, tensor in fixture.weights.items() if "dino" not in key} | vision_names(larger)
    tower = from_official("cobra", weights, fixture.arguments).model.vision_tower.encoders[0].timm_model
    assert tower.pos_embed.shape == (1, 16, 16) and larger["pos_embed"].shape == (1, 36, 16)
    assert torch.equal(tower.blocks[0].attn.qkv.weight, larger["blocks.0.attn.qkv.weight"])


def test_missing_or_wrong_encoders_are_one_clear_error(official):
    fixture, _ = official
    published = parts(fixture.weights)
    both = r"timm/vit_large_patch14_reg4_dinov2.lvd142m and of timm/vit_so400m_\S+ from .* --vision FILE"
    with pytest.raises(ValueError, match=both):
        from_official("cobra", published, fixture.arguments)
    siglip = vision_names(encoder(fixture.weights, "siglip"))
    wrong = vision_names({key: torch.zeros(2) for key in encoder(fixture.weights, "dino")})
    with pytest.raises(ValueError, match="the weights for the encoder vit_large_patch14_reg4.* do not fit it") as found:
        from_official("cobra", published | siglip | wrong, fixture.arguments)
    assert len(str(found.value)) < 500
    other = {"vision_backbone_id": "siglip-vit-so400m-384px"}
    with pytest.raises(ValueError, match="weights of dino_featurizer, but the encoders of the model are vit_so400m_"):
        from_official("cobra", published | siglip | wrong, fixture.arguments | other)


@pytest.mark.parametrize("projector", ["fused-gelu-mlp", "fused-ldpnet"])
def test_every_published_key_finds_its_place(projector):
    keys = json.loads((golden.FOLDER / "cobra-keys" / "cobra_3b.json").read_text())
    weights = {}
    with torch.device("meta"):
        for name, (shape, _) in keys[f"projector({projector})"].items():
            weights[f"projector.{name}"] = torch.empty(shape)
        for name, shape in keys["llm_backbone (64 layers, i=0..63)"].items():
            for i in range(64):
                weights["llm_backbone." + name.replace("{i}", str(i))] = torch.empty(shape)
        config = config_from_official({"arch_specifier": f"no-align+{projector}"})
        model = VLMambaForConditionalGeneration(config)
    tower = "model.vision_tower."
    renamed = rename(weights, config) | {k: v for k, v in model.state_dict().items() if k.startswith(tower)}
    assert not list(differences(model, renamed))
    assert complete(renamed, config).keys() == renamed.keys()
    assert config.image_seq_length == (196 if "ldp" in projector else 729)


def test_the_published_model_is_found_by_its_projector():
    keys = json.loads((golden.FOLDER / "cobra-keys" / "cobra_3b.json").read_text())["projector(fused-ldpnet)"]
    weights = {f"projector.{name}": torch.empty(shape, device="meta") for name, (shape, _) in keys.items()}
    with pytest.raises(ValueError, match="no vision tower"):  # nothing else is amiss
        from_official("cobra", weights)
    with pytest.raises(ValueError, match="the projector is that of none of cobra-3b, "):
        from_official("cobra", {"projector.projector.0.weight": torch.empty(3, 3)})


@pytest.mark.parametrize("name", list_presets("cobra"))
def test_presets_of_config_and_converter_agree(name):
    config = VLMambaConfig.from_preset(name)
    for same in (name, name.replace("-3b", "+3b")):
        ours = config_from_official({"model_id": same}).to_dict()
        assert ours == config.to_dict()


@pytest.mark.parametrize("backbone", VISION_BACKBONES)
def test_every_official_vision_backbone_is_known_to_timm(backbone):
    small = {"vision_backbone_id": backbone, "arch_specifier": "full-align+linear", "d_model": 8, "n_layer": 1}
    config = config_from_official(small)
    size, names = VISION_BACKBONES[backbone]
    assert config.vision_config.image_size == (size, size) and len(config.vision_config.encoders) == len(names)
    assert all(timm.is_model(name.partition(".")[0]) for name in names)


@pytest.mark.parametrize("backbone", VISION_BACKBONES)
@torch.no_grad()
def test_every_official_vision_backbone_gives_the_official_features(backbone):
    """What TimmViTBackbone and its like build with timm: what the last block reads; CLIP alone with OpenAI's GELU."""
    sizes = {"dd": 8, "sd": 12, "depth_d": 3, "depth_s": 2, "hd": 2, "hs": 2, "size": 56}
    config = config_from_official({"vision_backbone_id": backbone, "vision": sizes, "d_model": 8, "n_layer": 1})
    tower = VLMambaForConditionalGeneration(config).model.vision_tower.eval()
    names = VISION_BACKBONES[backbone][1]
    pixels, expected = torch.randn(2, 3 * len(names), 56, 56), []
    for name, own, part in zip(names, tower.encoders, pixels.split(3, 1), strict=True):
        kind = "d" if "dinov2" in name else "s"
        options = {"embed_dim": sizes[f"{kind}d"], "depth": sizes[f"depth_{kind}"], "num_heads": 2, "img_size": 56}
        if backbone.startswith("clip"):
            options["act_layer"] = "quick_gelu"
        official = timm.create_model(name.partition(".")[0], num_classes=0, **options).eval()
        official.load_state_dict(own.timm_model.state_dict())
        expected += official.get_intermediate_layers(part, n={len(official.blocks) - 2})
    assert torch.equal(tower(pixels).last_hidden_state, torch.cat(expected, 2))


def test_words_of_official_configs():
    config = config_from_official({"arch_specifier": "full-align+ldpnet", "vocab": 64, "d_model": 24, "n_layer": 1})
    assert (config.image_token_id, config.text_config.vocab_size) == (64, 64)
    assert config.projector_config.projector_type == "ldp"
    for words, message in (
        ({"arch_specifier": "no-align+qformer"}, "arch_specifier is 'no-align\\+qformer', expected one that ends in"),
        ({"vision_backbone_id": "vit"}, "vision_backbone_id is 'vit', expected one of clip-vit-b, "),
        ({"llm_backbone_id": "llama"}, "llm_backbone_id is 'llama', expected one of mamba-2.8b-zephyr, "),
        ({"arch_specifier": None}, "arch_specifier is None, expected a name"),
        ({"vocab": "61"}, "vocab is '61', expected a whole number"),
        ({"vision": 384}, "vision is 384, expected a dict"),
        ({"model": "cobra+3b"}, r"model is 'cobra\+3b', expected a dict: the official ModelConfig"),
    ):
        with pytest.raises(ValueError, match=message):
            config_from_official(words)
    with pytest.raises(ValueError, match=r"cobra has no preset 'cobra\+9b'; expected one of cobra-3b, "):
        from_official("cobra", {}, "cobra+9b")


def test_a_pooled_image_takes_as_many_placeholders_as_the_pool_has_cells():
    config = tiny_config(projector_config={"projector_type": "ldp", "pool_size": 3})
    model = VLMambaForConditionalGeneration(config).double()
    assert config.image_seq_length == 9
    ids = torch.tensor([[5] + [config.image_token_id] * 9 + [7, 8]])
    pixels = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    assert model(input_ids=ids, pixel_values=pixels).image_hidden_states.shape == (9, 24)
    larger = torch.randn(1, 3, 32, 24, dtype=torch.float64)
    assert model(input_ids=ids, pixel_values=larger).image_hidden_states.shape == (9, 24)
    with pytest.raises(ValueError, match=r"8 image placeholder tokens, but the images give 9 features \(9 per view\)"):
        model(input_ids=ids[:, 2:], pixel_values=pixels)
