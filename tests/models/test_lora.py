# SPDX-License-Identifier: Apache-2.0
"""LoRA acts on every projection of the encoder, the connector and the language model."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.models.test_vlmamba import IDS, PIXELS
from tests.models.tiny import tiny_model

PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj", "linear_1", "linear_2")


def adapted() -> PeftModel:
    targets = rf".*\.({'|'.join(PROJECTIONS)})"
    return get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).double()


def test_every_adapter_gets_a_gradient():
    model = adapted().train()
    model(input_ids=IDS, pixel_values=PIXELS, labels=IDS).loss.backward()
    adapters = {n: p for n, p in model.named_parameters() if "lora_" in n}
    # encoder: 2 layers of 2 + 2 x 2 projections; connector: 2 + 4; language model: 3 layers of 4; A and B each
    assert len(adapters) == 2 * (2 * 6 + 6 + 3 * 4)
    assert all(p.grad is not None and p.grad.any() for p in adapters.values())
    assert all(p.grad is None for n, p in model.named_parameters() if "lora_" not in n)


def test_merging_and_reloading_keep_the_answers(tmp_path):
    model = adapted().eval()
    expected = model(input_ids=IDS, pixel_values=PIXELS).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(), tmp_path).double().eval()
    torch.testing.assert_close(again(input_ids=IDS, pixel_values=PIXELS).logits, expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=IDS, pixel_values=PIXELS).logits, expected)
