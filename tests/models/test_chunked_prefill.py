# SPDX-License-Identifier: Apache-2.0
"""A prompt that is read in pieces is answered as one that is read at once: in float64, token for token."""

import pytest
import torch
from transformers import Mamba2Config, MambaConfig

from tests.close import assert_close
from tests.models.prompts import PROMPTS, generate, inputs_of, processed
from tests.models.tiny import LANGUAGE_MODELS, tiny_model, tiny_processor, tiny_text_config
from vlmamba import Mamba2ForCausalLM, MambaForCausalLM
from vlmamba.models.vlmamba import modeling_vlmamba

SIZES = [1, 2, 3, 5, 7, 1000]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def first_logits(model, inputs: dict, **options) -> torch.Tensor:
    """What the prompt's last token gives."""
    out = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, output_logits=True, **options)
    return out.logits[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pieces_of_a_padded_batch_answer_as_the_whole(model, processor, side, size):
    inputs = inputs_of(processor, *PROMPTS, side=side)
    assert torch.equal(generate(model, inputs, prefill_chunk_size=size), generate(model, inputs))
    # generation gives float32 logits
    assert_close("logits", first_logits(model, inputs, prefill_chunk_size=size), first_logits(model, inputs).double())


@pytest.mark.parametrize("size", [1, 4, 6])
@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_every_language_model_reads_in_pieces(processor, family, size):
    model = tiny_model(text_config=tiny_text_config(family))
    inputs = inputs_of(processor, *PROMPTS, side="right")
    assert torch.equal(generate(model, inputs, prefill_chunk_size=size), generate(model, inputs))


@pytest.mark.parametrize("size", [1, 5])
def test_pieces_answer_as_recomputing(model, processor, size):
    inputs = inputs_of(processor, "two images")
    assert torch.equal(generate(model, inputs, prefill_chunk_size=size), generate(model, inputs, use_cache=False))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams(model, processor, options):
    inputs = inputs_of(processor, *PROMPTS)
    whole = generate(model, inputs, **options)
    assert torch.equal(generate(model, inputs, prefill_chunk_size=3, **options), whole)
    assert torch.equal(generate(model, inputs, use_cache=False, **options), whole)


def test_samples(model, processor):
    inputs = inputs_of(processor, *PROMPTS, side="right")
    outs = []
    for size in (None, 4, 1):
        torch.manual_seed(3)
        outs.append(generate(model, inputs, do_sample=True, num_return_sequences=3, prefill_chunk_size=size))
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    assert len({tuple(row.tolist()) for row in outs[0]}) > len(PROMPTS)


@pytest.mark.parametrize("model_class", [MambaForCausalLM, Mamba2ForCausalLM])
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_language_models_read_in_pieces(model_class, size):
    torch.manual_seed(0)
    config = MambaConfig if model_class is MambaForCausalLM else Mamba2Config
    more = {} if config is MambaConfig else {"num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.5}
    lm = model_class(config(**sizes, **more, pad_token_id=3, eos_token_id=2)).double().eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 4], [10, 11, 3, 3, 3, 3]])
    assert torch.equal(generate(lm, {"input_ids": ids}, prefill_chunk_size=size), generate(lm, {"input_ids": ids}))


def test_embeddings_and_known_features_can_be_cut(model, processor):
    inputs = inputs_of(processor, *PROMPTS)
    expected = generate(model, inputs)
    pixels = inputs.pop("pixel_values")
    encoded = {"image": model.get_image_features(pixels)}
    assert torch.equal(generate(model, inputs, mm_encoder_outputs=encoded, prefill_chunk_size=3), expected)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    mask = {"attention_mask": inputs["attention_mask"]}
    out = model.generate(
        inputs_embeds=embeds, pixel_values=pixels, **mask, prefill_chunk_size=3, max_new_tokens=12, do_sample=False
    )
    assert torch.equal(out, expected)


def counted(model, monkeypatch) -> list[int]:
    """How many images each call of the encoder gets from now on."""
    calls, forward = [], model.model.vision_tower.forward
    monkeypatch.setattr(
        model.model.vision_tower, "forward", lambda x, *a, **k: calls.append(len(x)) or forward(x, *a, **k)
    )
    return calls


def test_images_are_encoded_once_and_a_few_at_a_time(model, processor, monkeypatch):
    text = "<image>" * 10 + " what ?"
    shades = torch.randint(0, 255, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = processed(processor, [text, text], list(shades))
    calls = counted(model, monkeypatch)
    expected = generate(model, inputs, num_beams=2)
    assert calls == [16, 4]
    calls.clear()
    assert torch.equal(generate(model, inputs, prefill_chunk_size=6, num_beams=2), expected)
    assert sum(calls) == 20 and max(calls) <= 4
    monkeypatch.setattr(modeling_vlmamba, "IMAGES_AT_ONCE", 3)
    calls.clear()
    assert torch.equal(generate(model, inputs), generate(model, inputs, num_beams=1))
    assert max(calls) == 3 and sum(calls) == 40


def test_a_prompt_is_read_once_for_all_its_answers(model, processor, monkeypatch):
    inputs = inputs_of(processor, *PROMPTS)
    rows, forward = [], model.model.language_model.forward
    monkeypatch.setattr(
        model.model.language_model,
        "forward",
        lambda *a, inputs_embeds, **k: (
            rows.append(inputs_embeds.shape[:2]) or forward(inputs_embeds=inputs_embeds, **k)
        ),
    )
    generate(model, inputs, num_beams=3)
    assert rows[0] == inputs["input_ids"].shape and set(rows[1:]) == {(12, 1)}


def test_only_the_last_logits_are_computed(model, processor, monkeypatch):
    inputs = inputs_of(processor, "two turns")
    seen, forward = [], model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda x: seen.append(x.shape[1]) or forward(x))
    for size in (None, 4):
        generate(model, inputs, prefill_chunk_size=size)
    assert set(seen) == {1}


def test_a_static_cache_takes_pieces(model, processor):
    inputs = inputs_of(processor, *PROMPTS)
    for size in (None, 3):
        out = generate(model, inputs, cache_implementation="static", prefill_chunk_size=size)
        assert torch.equal(out, generate(model, inputs))


@pytest.mark.parametrize("size", [0, -1, 1.5, "many", True])
def test_a_size_that_is_none_is_refused(model, processor, size):
    with pytest.raises(ValueError, match=r"prefill_chunk_size is .*, expected a positive integer"):
        generate(model, inputs_of(processor, "text only"), prefill_chunk_size=size)


def test_pieces_need_a_cache(model, processor):
    with pytest.raises(ValueError, match="use_cache is False, expected True: prefill_chunk_size needs a cache"):
        generate(model, inputs_of(processor, "text only"), prefill_chunk_size=2, use_cache=False)


@pytest.mark.parametrize("size", [None, 1, 3])
def test_placeholders_and_images_must_match(model, processor, size):
    inputs = inputs_of(processor, "two images")
    for images, features in ((1, 4), (0, 0)):
        fewer = {**inputs, "pixel_values": inputs["pixel_values"][:images]}
        with pytest.raises(ValueError, match=f"8 image placeholder tokens, but the images give {features} features"):
            generate(model, fewer, prefill_chunk_size=size)
