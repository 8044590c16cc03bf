# SPDX-License-Identifier: Apache-2.0
"""Named architectures: their sizes are the published ones, and small ones of the same kinds run."""

import json
from copy import deepcopy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from vlmamba import VLMambaConfig, VLMambaForConditionalGeneration
from vlmamba.assets import bundled_model
from vlmamba.convert import list_presets
from vlmamba.models.vlmamba.convert_cobra import PRESETS as COBRA
from vlmamba.models.vlmamba.convert_cobra import config_from_official

PRESETS = list_presets("vlmamba")

# state-spaces/mamba-* and mamba2-*, as published
MAMBA = {"130m": 129135360, "370m": 371516416, "790m": 793204224, "1.4b": 1372178432, "2.8b": 2768345600}
MAMBA2 = {"130m": 128989632, "370m": 368346624, "780m": 780161280, "1.3b": 1343757312, "2.7b": 2702599680}
# timm's DINOv2-L/14 with four registers at 384 pixels; SigLIP SO400M at 384, the same in timm and transformers; CLIP-L
# of transformers at 336
DINOV2, SIGLIP, CLIP = 303715328, 428225600, 303507456


def linear(inside: int, outside: int) -> int:
    """Weight and bias."""
    return inside * outside + outside


def mlp(inside: int, width: int) -> int:
    return linear(inside, width) + linear(width, width)


def vss_l2(inside: int, width: int, state: int = 16, taps: int = 4) -> int:
    """Two linear layers, a norm, and a Mamba layer that all directions share."""
    inner, rank = 2 * width, -(-width // 16)
    scan = inner * (rank + 2 * state) + linear(rank, inner) + inner * state + inner
    layer = width * 2 * inner + inner * taps + inner + scan + inner * width
    return mlp(inside, width) + 2 * width + layer


def mamba(width: int, layers: int, words: int = 50280, state: int = 16, taps: int = 4) -> int:
    """Embeddings that are the head's too, and layers of a norm and a mixer; a last norm."""
    inner, rank = 2 * width, -(-width // 16)
    scan = inner * (rank + 2 * state) + linear(rank, inner) + inner * state + inner
    return words * width + width + layers * (width + 3 * width * inner + inner * taps + inner + scan)


BOTH = 1024 + 1152
FUSED_MLP = linear(BOTH, 4 * BOTH) + linear(4 * BOTH, 2560) + linear(2560, 2560)
# the last layer is a depthwise convolution of 3 x 3 taps instead
FUSED_LDP = linear(BOTH, 4 * BOTH) + linear(4 * BOTH, 2560) + 2560 * 9 + 2560
WIDTHS = {"130m": 768, "370m": 1024, "780m": 1536, "790m": 1536, "1.3b": 2048, "1.4b": 2048, "2.7b": 2560, "2.8b": 2560}
# encoder, connector, language model
SIZES = {
    **{f"vl-mamba-{name}": (SIGLIP, vss_l2(1152, WIDTHS[name]), size) for name, size in MAMBA.items()},
    **{f"vl-mamba2-{name}": (SIGLIP, vss_l2(1152, WIDTHS[name]), size) for name, size in MAMBA2.items()},
    "vl-mamba-clip-2.8b": (CLIP, vss_l2(1024, 2560), MAMBA["2.8b"]),
    "cobra-3b": (DINOV2 + SIGLIP, FUSED_MLP, MAMBA["2.8b"]),
    "cobra-one-epoch-3b": (DINOV2 + SIGLIP, FUSED_MLP, MAMBA["2.8b"]),
    "cobra-base-3b": (DINOV2 + SIGLIP, FUSED_MLP, MAMBA["2.8b"]),
    "cobra-siglip-3b": (SIGLIP, mlp(1152, 2560), MAMBA["2.8b"]),
    "cobra-ldpnet-3b": (DINOV2 + SIGLIP, FUSED_LDP, MAMBA["2.8b"]),
    "vlmamba-tiny": (2961408, vss_l2(256, 192, state=8), mamba(192, 6, words=1600)),
}
TOKENS = {"vl-mamba-clip-2.8b": 24**2, "cobra-ldpnet-3b": 14**2, "vlmamba-tiny": 8**2}

SMALL_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
SMALL_VISION = {
    "vim": {"hidden_size": 16, "num_hidden_layers": 2, "image_size": 32},
    "siglip_vision_model": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "image_size": 28},
    "clip_vision_model": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "image_size": 28},
}
SMALL_TIMM = {"img_size": 28, "embed_dim": 16, "depth": 3, "num_heads": 2}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small(name: str) -> VLMambaConfig:
    """The same classes with few parameters."""
    preset = deepcopy(PRESETS[name])
    vision, text = preset["vision_config"], dict(SMALL_TEXT)
    if vision["model_type"] == "fused_vision":
        whole = VLMambaConfig.from_preset(name).vision_config.to_dict()["encoders"]
        encoders = [{**encoder, "model_args": SMALL_TIMM} for encoder in whole]
        smaller = {"encoders": encoders}
    else:
        smaller = SMALL_VISION[vision["model_type"]]
        smaller = smaller if vision["model_type"] == "vim" else {**smaller, "num_attention_heads": 2}
    if preset["text_config"]["model_type"] == "mamba2":
        text |= {"num_heads": 8, "head_dim": 8, "chunk_size": 8}
    return VLMambaConfig.from_preset(name, vision_config=smaller, text_config=text, projector_config={"pool_size": 2})


def test_every_preset_is_held_to_a_published_size():
    assert SIZES.keys() == PRESETS.keys()
    assert mamba(2560, 64) == MAMBA["2.8b"] and FUSED_MLP == 47789568


@pytest.mark.parametrize("name", PRESETS)
def test_parts_have_as_many_parameters_as_published(name):
    config = VLMambaConfig.from_preset(name)
    with torch.device("meta"):
        model = VLMambaForConditionalGeneration(config)
    parts = model.model
    assert (count(parts.vision_tower), count(parts.multi_modal_projector), count(parts.language_model)) == SIZES[name]
    assert count(model) == sum(SIZES[name])
    assert config.image_seq_length == TOKENS.get(name, 27**2)


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_is_saved_and_loaded(name, tmp_path):
    config = VLMambaConfig.from_preset(name)
    config.save_pretrained(tmp_path)
    again = VLMambaConfig.from_pretrained(tmp_path)
    saved, loaded = config.to_dict(), again.to_dict()
    assert {part: loaded[part] for part in saved if part != "transformers_version"} == {
        part: saved[part] for part in saved if part != "transformers_version"
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_small_one_of_the_same_kind_is_initialised_and_answers(name):
    torch.manual_seed(0)
    config = small(name)
    model = VLMambaForConditionalGeneration(config).eval()
    whole = VLMambaConfig.from_preset(name)
    assert config.vision_config.model_type == whole.vision_config.model_type
    assert config.projector_config.projector_type == whole.projector_config.projector_type
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    side = config.vision_config.image_size
    side = side if isinstance(side, int) else side[0]
    channels = getattr(config.vision_config, "num_channels", 3)
    ids = torch.tensor([[5, *[config.image_token_id] * config.image_seq_length, 6]])
    out = model.generate(ids, pixel_values=torch.randn(1, channels, side, side), max_new_tokens=3, min_new_tokens=3)
    assert out.shape[1] == ids.shape[1] + 3


@pytest.mark.parametrize("name", COBRA)
def test_cobras_presets_are_what_its_converter_makes(name):
    ours = VLMambaConfig.from_preset(name)
    assert ours.to_dict() == config_from_official(COBRA[name]).to_dict()


def test_the_tiny_preset_is_the_bundled_model():
    saved = json.loads((bundled_model() / "config.json").read_text())
    ours = VLMambaConfig.from_preset("vlmamba-tiny").to_dict()
    for part in ("vision_config", "projector_config", "text_config"):
        told = saved.pop(part)
        unknown = {"_name_or_path", "architectures", "dtype"}
        assert {key: ours[part][key] for key in told.keys() - unknown} == {k: told[k] for k in told.keys() - unknown}
    extra = {"architectures", "dtype", "transformers_version", "auto_map"}
    assert {key: ours[key] for key in saved.keys() - extra} == {key: saved[key] for key in saved.keys() - extra}


def test_changes_are_of_fields_or_of_whole_parts():
    config = VLMambaConfig.from_preset("vl-mamba-2.8b", projector_config={"scan": "cross_scan"}, image_token_id=7)
    assert (config.projector_config.projector_type, config.projector_config.scan) == ("vss_l2", "cross_scan")
    assert config.image_token_id == 7 and config.text_config.num_hidden_layers == 64
    mixed = VLMambaConfig.from_preset(
        "cobra-3b", vision_config={"model_type": "vmamba"}, text_config=config.text_config
    )
    assert mixed.vision_config.model_type == "vmamba" and not hasattr(mixed.vision_config, "encoders")
    assert mixed.text_config.hidden_size == 2560
    # a preset stays as it is
    assert VLMambaConfig.from_preset("vl-mamba-2.8b").projector_config.scan == "bidirectional"


def test_an_unknown_name_is_told_the_nearest_and_all():
    with pytest.raises(
        ValueError, match=r"unknown preset 'cobra3b' \(nearest: 'cobra-3b'\); expected one of vl-mamba-"
    ):
        VLMambaConfig.from_preset("cobra3b")
    with pytest.raises(ValueError, match=r"unknown preset '...'; expected one of vl-mamba-.*, vlmamba-tiny"):
        VLMambaConfig.from_preset("...")


def test_a_change_of_what_is_no_field_is_refused():
    with pytest.raises(ValueError, match=r"a VLMambaConfig has no field 'textconfig' \(nearest: 'text_config'\)"):
        VLMambaConfig.from_preset("vlmamba-tiny", textconfig={})
    for part in ("vision_config", "text_config"):
        with pytest.raises(ValueError, match=rf"{part} has no field 'hiden_size' \(nearest: 'hidden_size'\)"):
            VLMambaConfig.from_preset("vl-mamba-2.8b", **{part: {"hiden_size": 64}})
    with pytest.raises(ValueError, match="vision_config has no field 'encoder' "):
        VLMambaConfig.from_preset("vl-mamba-2.8b", vision_config={"model_type": "fused_vision", "encoder": []})
    with pytest.raises(StrictDataclassClassValidationError, match="pool_size is 0, expected 1 or more"):
        VLMambaConfig.from_preset("cobra-ldpnet-3b", projector_config={"pool_size": 0})
    # not all that configs take is a field
    assert VLMambaConfig.from_preset("vlmamba-tiny", text_config={"num_labels": 3}).text_config.num_labels == 3


def test_another_encoder_is_read_at_its_end():
    """The preset's layer is one of its own encoder: one in stages has narrower maps before the last."""
    stages = {"model_type": "vmamba", "hidden_sizes": [8, 16], "depths": [1, 1], "image_size": 32}
    text = {"hidden_size": 24, "num_hidden_layers": 1, "vocab_size": 64}
    changes = {"vision_config": stages, "text_config": text, "image_token_id": 4}
    config = VLMambaConfig.from_preset("vl-mamba-130m", **changes)
    assert config.vision_feature_layer == -1 and config.image_seq_length == 16
    ids, pixels = torch.tensor([[*[4] * 16, 7]]), torch.randn(1, 3, 32, 32)
    assert torch.isfinite(VLMambaForConditionalGeneration(config).eval()(ids, pixels).logits).all()
    config = VLMambaConfig.from_preset("vl-mamba-130m", **changes, vision_feature_layer=-2)
    with pytest.raises(ValueError, match=r"layer -2 of the vmamba encoder gives \(1, 64, 8\) features"):
        VLMambaForConditionalGeneration(config)(ids, pixels)
    smaller = VLMambaConfig.from_preset("vl-mamba-130m", vision_config={"num_hidden_layers": 3})
    assert smaller.vision_feature_layer == -2
