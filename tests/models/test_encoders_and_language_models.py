# SPDX-License-Identifier: Apache-2.0
"""Any encoder with any language model: answers, and the same ones after saving and loading."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.models.encoders import TINY
from tests.models.tiny import LANGUAGE_MODELS, TOKENS, tiny_text_config
from vlmamba import VLMambaConfig, VLMambaForConditionalGeneration

_VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
_FOREIGN = {
    "clip_vision_model": {**_VIT, "patch_size": 16},
    "siglip_vision_model": {**_VIT, "patch_size": 16},
    "dinov2": {**_VIT, "patch_size": 16},
    "dinov2_with_registers": {**_VIT, "patch_size": 16, "num_register_tokens": 4},
    "vit": {**_VIT, "patch_size": 16},
}
_TIMM = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "do_pooling": False}
SIDE = 64
ENCODERS = {
    **{kind: {"model_type": kind, "image_size": SIDE, **fields} for kind, fields in (TINY | _FOREIGN).items()},
    "timm_wrapper": {**_TIMM, "model_args": {"img_size": SIDE, "embed_dim": 16, "depth": 3, "num_heads": 2}},
}
ENCODERS["fused_vision"] = {
    "model_type": "fused_vision",
    "encoders": [ENCODERS["dinov2_with_registers"], ENCODERS["timm_wrapper"], ENCODERS["siglip_vision_model"]],
}


def config_of(encoder: str, language_model: str, projector: str = "vss_l2") -> VLMambaConfig:
    return VLMambaConfig(
        vision_config=ENCODERS[encoder],
        projector_config={"projector_type": projector, "state_size": 4},
        text_config=tiny_text_config(language_model),
        image_token_id=4,
        **TOKENS,
    )


@pytest.mark.parametrize("language_model", LANGUAGE_MODELS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_answers_are_the_same_after_saving(encoder, language_model, tmp_path):
    torch.manual_seed(0)
    config = config_of(encoder, language_model)
    model = VLMambaForConditionalGeneration(config).eval()
    pixels = torch.randn(2, getattr(config.vision_config, "num_channels", 3), SIDE, SIDE)
    row = torch.tensor([5, *[4] * config.image_seq_length, 7, 8, 6])
    inputs = {"input_ids": row.repeat(2, 1), "pixel_values": pixels}
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [0, 1, 2, 3, 4]}
    logits, out = model(**inputs).logits, model.generate(**inputs, **options)
    assert torch.isfinite(logits).all() and not torch.equal(logits[0], logits[1])
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, logits) and torch.equal(again.generate(**inputs, **options), out)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_unfrozen_encoder_learns_from_the_answers(encoder):
    torch.manual_seed(0)
    config = config_of(encoder, "mamba", projector="mlp")
    model = VLMambaForConditionalGeneration(config).train()
    pixels = torch.randn(1, getattr(config.vision_config, "num_channels", 3), SIDE, SIDE)
    ids = torch.tensor([[5, *[4] * config.image_seq_length, 7, 8, 6]])
    model(input_ids=ids, pixel_values=pixels, labels=ids).loss.backward()
    # the first convolution; heads that pool and layers behind the features are not used
    first = next(p for p in model.model.vision_tower.parameters() if p.dim() == 4)
    assert first.grad is not None and first.grad.any()
