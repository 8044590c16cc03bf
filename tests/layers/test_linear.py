# SPDX-License-Identifier: Apache-2.0
"""Linear layers for generation: what they compute, what they keep, and what they stay to LoRA, hooks and saving."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MambaConfig

from tests.close import INT8, assert_close
from vlmamba import MambaForCausalLM
from vlmamba.layers.linear import FewRowsLinear, Int8Linear, use_few_rows
from vlmamba.layers.quantize import quantize

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def tiny() -> MambaForCausalLM:
    config = MambaConfig(hidden_size=24, num_hidden_layers=2, vocab_size=50, state_size=4, initializer_range=0.3)
    return MambaForCausalLM(config).eval()


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_few_rows_stays_a_linear_layer():
    plain = nn.Linear(70, 30)
    few = copy.deepcopy(plain)
    few.__class__ = FewRowsLinear
    x = torch.randn(2, 1, 70)
    with torch.no_grad():
        assert_close("y", few(x), plain.double()(x.double()))
    assert list(few.state_dict()) == ["weight", "bias"]
    few(x).sum().backward()
    assert few.weight.grad.any()


def test_int8_layer_computes_with_the_widened_weights():
    plain = nn.Linear(70, 30)
    layer, x = Int8Linear.of(plain), torch.randn(2, 70)
    assert layer.weight.shape == (30, 70) and layer.weight.dtype == torch.float32
    expected = x.double() @ layer.weight.double().T + plain.bias.double()
    with torch.no_grad():
        assert_close("y", layer(x), expected, INT8)
    x.requires_grad_()
    layer(x).sum().backward()
    assert_close("dx", x.grad, layer.weight.double().sum(0).expand(2, -1))
    assert layer.bias.grad.any() and [name for name, _ in layer.named_parameters()] == ["bias"]


def test_int8_weights_cannot_be_changed_unseen():
    layer = Int8Linear.of(nn.Linear(70, 30))
    with pytest.raises(RuntimeError, match="cannot be changed"):
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="cannot be changed"):
        layer.weight.data += 1


def test_scales_stay_exact_in_every_dtype():
    layer = Int8Linear.of(nn.Linear(70, 30))
    scale = layer.scale.clone()
    low = copy.deepcopy(layer).bfloat16()
    assert low.weight.dtype == low.bias.dtype == torch.bfloat16 and torch.equal(low.scale, scale)
    assert low(torch.randn(2, 70, dtype=torch.bfloat16)).dtype == torch.bfloat16
    again = pickle.loads(pickle.dumps(low)).float()
    assert again.weight.dtype == torch.float32 and torch.equal(again.scale, scale)
    assert layer.to("meta").weight.device.type == "meta"


def test_quantize_takes_mixers_and_head_and_leaves_the_rest():
    model = tiny()
    expected = model(IDS).logits
    embeddings = model.get_input_embeddings().weight.clone()
    assert quantize(model) is model
    assert len(linear_layers(model)) == 2 * 4 + 1
    assert all(type(module) is Int8Linear for module in linear_layers(model).values())
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    error = (model(IDS).logits - expected).norm() / expected.norm()
    assert 0 < error < 0.1  # of a random model of 24 channels; every layer was exchanged and none is wrong
    assert quantize(model) is model


def test_quantized_models_are_saved_and_loaded(tmp_path):
    model = quantize(tiny())
    expected = model(IDS).logits
    save_file(model.state_dict(), tmp_path / "int8.safetensors")
    again = quantize(tiny())
    again.load_state_dict(load_file(tmp_path / "int8.safetensors"))
    again.tie_weights()
    assert torch.equal(again(IDS).logits, expected)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


@pytest.mark.parametrize("before", [True, False])
def test_lora_trains_on_int8_weights(before):
    model = tiny()
    targets = rf".*\.({'|'.join(('in_proj', 'x_proj', 'dt_proj'))})"
    options = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    model = quantize(get_peft_model(model, options)) if before else get_peft_model(quantize(model), options)
    model(IDS, labels=IDS).loss.backward()
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    assert len(adapters) == 2 * 2 * 3 and all(p.grad is not None and p.grad.any() for p in adapters)
    with pytest.raises(RuntimeError, match="quantize again"):
        model.merge_and_unload()


def test_generation_goes_on_as_from_the_start():
    model = quantize(tiny())
    with torch.no_grad():
        tokens = model.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
        whole = model(tokens[:, :-1]).logits.argmax(-1)[:, IDS.shape[1] - 1 :]
    assert torch.equal(tokens[:, IDS.shape[1] :], whole)


def test_use_few_rows_takes_the_same_layers_and_keeps_tying():
    model = use_few_rows(tiny())
    assert all(type(module) is FewRowsLinear for module in linear_layers(model).values())
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_models_without_mixers_are_refused():
    with pytest.raises(ValueError, match="no mixer"):
        quantize(nn.Sequential(nn.Linear(2, 2)))
