# SPDX-License-Identifier: Apache-2.0
"""int8 weights of torchao: every way to get them, generation with them, saving and loading."""

import pytest
import torch

pytest.importorskip("torchao")

from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: E402
from transformers import AutoModelForImageTextToText, TorchAoConfig  # noqa: E402

from eval.weights import WEIGHTS, megabytes  # noqa: E402
from tests.close import assert_close  # noqa: E402
from tests.models.tiny import LANGUAGE_MODELS, tiny_model, tiny_text_config  # noqa: E402
from vlmamba import quantize  # noqa: E402

# torchao takes no weight of one column: projections of the steps get two
VISION = {"model_type": "vim", "hidden_size": 32, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
IDS = torch.tensor([[3, 3, 5, 7, 8, 6], [5, 9, 10, 11, 7, 6]])
IMAGE_IDS = torch.tensor([[5, 4, 4, 4, 4, 7, 8, 9, 6]])
PIXELS = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def model_of(family: str = "mamba"):
    return tiny_model(vision_config=VISION, text_config=tiny_text_config(family)).float()


def generate(model, **options) -> torch.Tensor:
    inputs = {"input_ids": IMAGE_IDS, "pixel_values": PIXELS, **options}
    return model.generate(**{"max_new_tokens": 8, "do_sample": False, **inputs})[:, inputs["input_ids"].shape[1] :]


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(IMAGE_IDS, PIXELS).logits


def quantized_linears(model) -> list[str]:
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    return [name for name, module in linears if type(module.weight).__name__ == "Int8Tensor"]


def dequantized(model):
    """The same numbers as float weights."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and type(module.weight).__name__ == "Int8Tensor":
            module.weight = torch.nn.Parameter(module.weight.dequantize(), requires_grad=False)
    return model


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_int8_weights_answer_cached_padded_and_as_their_numbers_say(family):
    model = model_of(family)
    whole = megabytes(model)
    quantize_(model, Int8WeightOnlyConfig())
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert quantized_linears(model) == linears and megabytes(model) < 0.7 * whole
    cached = generate(model)
    assert len(set(cached[0].tolist())) > 1
    assert torch.equal(cached, generate(model, use_cache=False))
    mask = (IDS != 3).long()
    together = generate(model, input_ids=IDS, attention_mask=mask, pixel_values=None)
    for row, ids in enumerate((IDS[0, 2:], IDS[1])):
        assert torch.equal(together[row], generate(model, input_ids=ids[None], pixel_values=None)[0])
    given = logits(model)
    assert_close("int8", given, logits(dequantized(model)).double())


def test_a_folder_loads_as_int8_and_what_it_saves_loads_again(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path / "float")
    config = TorchAoConfig(Int8WeightOnlyConfig())
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "float", quantization_config=config).eval()
    everything = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert quantized_linears(loaded) == [name for name in everything if name != "lm_head"]
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    by_hand = model_of()
    quantize_(by_hand, Int8WeightOnlyConfig(), lambda module, name: name in quantized_linears(loaded))
    assert torch.equal(logits(loaded), logits(by_hand))
    assert torch.equal(generate(loaded), generate(by_hand))
    loaded.save_pretrained(tmp_path / "int8")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "int8").eval()
    assert quantized_linears(again) == quantized_linears(loaded)
    assert torch.equal(logits(again), logits(loaded))


def test_our_own_int8_weights_leave_those_of_torchao_alone():
    model = model_of()
    quantize_(model, Int8WeightOnlyConfig())
    before = logits(model)
    assert torch.equal(logits(quantize(model)), before)


def test_what_is_measured_weighs_what_it_should(tmp_path):
    model_of().save_pretrained(tmp_path)
    sizes = {name: megabytes(load(tmp_path)) for name, load in WEIGHTS.items()}
    assert sizes["float32"] == 4 * model_of().num_parameters() / 1e6
    assert sizes["int8 (torchao)"] < sizes["bfloat16"] < sizes["int8 (vlmamba.quantize)"] < sizes["float32"]
