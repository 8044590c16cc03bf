# SPDX-License-Identifier: Apache-2.0
"""LoRA acts on every projection of the encoder, the connector and the language model, of any family."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.models.families import CONFIGS, VOCABULARY, tiny_language_model
from tests.models.test_vlmamba import IDS, PIXELS
from tests.models.tiny import tiny_model
from vlmamba import apply_kernels
from vlmamba.layers.mixer import KernelMixer

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


@pytest.mark.parametrize("family", CONFIGS)
def test_every_projection_of_a_moved_family_takes_lora(family):
    model = apply_kernels(tiny_language_model(family)).train()
    mixers = [name for name, module in model.named_modules() if isinstance(module, KernelMixer)]
    targets = [
        f"{name}.{part}"
        for name in mixers
        for part, module in model.get_submodule(name).named_modules()
        if isinstance(module, nn.Linear)
    ]
    # peft refuses out_proj for some model types, as transformers' fused path would pass it over; ours calls it
    config, model.config.model_type = (
        LoraConfig(r=2, target_modules=targets, init_lora_weights=False),
        family + "_moved",
    )
    adapted = get_peft_model(model, config)
    ids = torch.randint(4, VOCABULARY, (1, 9))
    before = adapted(ids).logits.detach()
    adapted(ids, labels=ids).loss.backward()
    adapters = {n: p for n, p in adapted.named_parameters() if "lora_" in n}
    assert len(adapters) == 2 * len(targets)
    assert all(p.grad is not None and p.grad.any() for p in adapters.values())
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits.detach(), before)
