# SPDX-License-Identifier: Apache-2.0
"""Any encoder with any language model: answers, and the same ones after saving and loading."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.models.encoders import TINY
from tests.models.tiny import LANGUAGE_MODELS, TOKENS, tiny_text_config
from vlmamba import VLMambaConfig, VLMambaForConditionalGeneration
from vlmamba.models.vision_features import vision_size

_VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
_FOREIGN = {
    "clip_vision_model": {**_VIT, "patch_size": 16},
    "siglip_vision_model": {**_VIT, "patch_size": 16},
    "dinov2": {**_VIT, "patch_size": 16},
    "dinov2_with_registers": {**_VIT, "patch_size": 16, "num_register_tokens": 4},
    "vit": {**_VIT, "patch_size": 16},
}
# with maps that shrink: of transformers
_STAGES = {
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "hiera": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "query_stride": [2, 2], "num_query_pool": 1},
}
_STAGES["hiera"] |= {"image_size": [64, 64], "masked_unit_size": [8, 8]}
_TIMM = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "do_pooling": False}
_TIMM_SWIN = {"img_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
SIDE = 64
ENCODERS = {
    **{k: {"model_type": k, "image_size": SIDE, **fields} for k, fields in (TINY | _FOREIGN | _STAGES).items()},
    "timm_wrapper": {**_TIMM, "model_args": {"img_size": SIDE, "embed_dim": 16, "depth": 3, "num_heads": 2}},
    # of timm, which gives a map or has its width last
    "timm_convolutions": {**_TIMM, "architecture": "test_convnext", "model_args": None},
    "timm_windows": {**_TIMM, "architecture": "swin_tiny_patch4_window7_224", "model_args": _TIMM_SWIN},
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
    pixels = torch.randn(2, getattr(config.vision_config, "num_channels", 3), *vision_size(config.vision_config))
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
    pixels = torch.randn(1, getattr(config.vision_config, "num_channels", 3), *vision_size(config.vision_config))
    ids = torch.tensor([[5, *[4] * config.image_seq_length, 7, 8, 6]])
    model(input_ids=ids, pixel_values=pixels, labels=ids).loss.backward()
    # the first convolution; heads that pool and layers behind the features are not used
    first = next(p for p in model.model.vision_tower.parameters() if p.dim() == 4)
    assert first.grad is not None and first.grad.any()
