# SPDX-License-Identifier: Apache-2.0
"""What cannot be answered is one clear line, for whole prompts, pieces and prefixes alike."""

import numpy as np
import pytest
import torch
from transformers import MambaConfig

from tests.models.tiny import tiny_model, tiny_processor
from vlmamba import MambaForCausalLM

IDS = torch.tensor([[5, 4, 4, 4, 4, 7]])
PIXELS = torch.zeros(1, 3, 16, 16, dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(params=["whole", "pieces", "prefix"])
def read(request, model):
    """Reads inputs in one of the ways that there are."""
    size = None if request.param == "whole" else 2
    if request.param == "prefix":
        return lambda **inputs: model.prefix_state(**inputs, prefill_chunk_size=size)
    return lambda **inputs: model.generate(**inputs, prefill_chunk_size=size, max_new_tokens=1)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"pixel_values": PIXELS.to(torch.uint8)}, "pixel_values has dtype torch.uint8, expected floating point"),
        ({"pixel_values": PIXELS[0]}, r"pixel_values has shape \([31], 16, 16\), expected \[batch, 3, H, W\]"),
        ({"pixel_values": PIXELS[:, :1]}, r"pixel_values has shape \(1, 1, 16, 16\), expected"),
        ({"pixel_values": PIXELS / 0}, "pixel_values has NaN or infinite values, expected finite ones"),
        ({"input_ids": IDS.double()}, "input_ids has dtype torch.float64, expected integers"),
        ({"input_ids": IDS[:, 1:]}, None),
        ({"input_ids": IDS[:, 2:]}, "3 image placeholder tokens, but the images give 4 features"),
        ({"pixel_values": None}, "4 image placeholder tokens, but the images give 0 features"),
        ({"input_ids": IDS[:, :1]}, "0 image placeholder tokens, but the images give 4 features"),
        ({"pixels": PIXELS}, "not used by the model: .'pixels'."),
    ],
)
def test_inputs_of_the_model(read, inputs, message):
    inputs = {"input_ids": IDS, "pixel_values": PIXELS, **inputs}
    if message is None:
        read(**inputs)
        return
    with pytest.raises(ValueError, match=message):
        read(**inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [np.full, torch.full])
def test_an_image_with_numbers_that_are_none(read, value, make):
    image = make((20, 20, 3) if make is np.full else (3, 20, 20), value)
    batch = tiny_processor()(images=[image], text="<image> what ?", return_tensors="pt")
    with pytest.raises(ValueError, match="pixel_values has NaN or infinite values"):
        read(**{k: v.double() if v.is_floating_point() else v for k, v in batch.items()})


def test_a_language_model_sees_no_images():
    lm = MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1)).eval()
    for call in (lm.prefix_state, lm.generate):
        with pytest.raises(ValueError, match="not used by the model: .'pixel_values'."):
            call(input_ids=IDS, pixel_values=PIXELS)
