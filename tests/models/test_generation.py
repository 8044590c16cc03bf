# SPDX-License-Identifier: Apache-2.0
"""Cached == recomputed, padded == single, chunks == whole: in float64, token for token."""

import io
from contextlib import redirect_stdout

import pytest
import torch
import transformers
from transformers import GenerationConfig, MambaConfig, TextStreamer, pipeline

from tests import golden
from tests.close import assert_close
from tests.models.prompts import NEW, PROMPTS, generate, inputs_of, picture
from tests.models.tiny import LANGUAGE_MODELS, tiny_model, tiny_processor, tiny_text_config
from vlmamba import MambaForCausalLM, VLMambaForConditionalGeneration, apply_kernels, from_official
from vlmamba.models.modeling_utils import CACHE


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.mark.parametrize("name", PROMPTS)
def test_cache_equals_recomputing(model, processor, name):
    inputs = inputs_of(processor, name)
    cached = generate(model, inputs)
    assert cached.shape == (1, NEW) and len(set(cached[0].tolist())) > 2
    assert torch.equal(cached, generate(model, inputs, use_cache=False))
    assert torch.equal(generate(model, inputs, num_beams=3), generate(model, inputs, num_beams=3, use_cache=False))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_answers_as_each_item_alone(model, processor, side):
    together = generate(model, inputs_of(processor, *PROMPTS, side=side))
    for row, name in enumerate(PROMPTS):
        assert torch.equal(together[row], generate(model, inputs_of(processor, name))[0]), name


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_every_language_model_answers_cached_padded_and_reloaded(processor, family, tmp_path):
    model = tiny_model(text_config=tiny_text_config(family))
    model.save_pretrained(tmp_path)
    loaded = VLMambaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float64).eval()
    inputs = inputs_of(processor, *PROMPTS, side="right")
    together = generate(model, inputs)
    assert len(set(together.flatten().tolist())) > 2
    assert torch.equal(together, generate(model, inputs, use_cache=False))
    for row, name in enumerate(PROMPTS):
        assert torch.equal(together[row], generate(loaded, inputs_of(processor, name))[0]), name


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_told_from_its_token_when_no_mask_is_given(model, processor, side):
    inputs = inputs_of(processor, *PROMPTS, side=side)
    expected = generate(model, inputs)
    inputs.pop("attention_mask")
    assert torch.equal(generate(model, inputs), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_logits_equal_single_ones(model, processor, side):
    batch = inputs_of(processor, *PROMPTS, side=side)
    logits = model(**batch).logits
    for row, name in enumerate(PROMPTS):
        single = model(**inputs_of(processor, name)).logits[0]
        assert_close("logits", logits[row][batch["attention_mask"][row].bool()], single)


@pytest.mark.parametrize("cuts", [(1,), (3, 4), (6, 11), (9,)])
def test_a_warm_cache_takes_any_number_of_tokens(model, processor, cuts):
    inputs = inputs_of(processor, "two turns")
    ids = inputs["input_ids"]
    whole = model(**inputs, use_cache=True)
    embeds = model.get_input_embeddings()(ids).masked_scatter(
        (ids == 4).unsqueeze(-1), torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output)
    )
    cache, parts = None, []
    for start, stop in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
        out = model(inputs_embeds=embeds[:, start:stop], cache=cache, use_cache=True)
        cache = out[CACHE]
        parts.append(out.logits)
    assert_close("logits", torch.cat(parts, 1), whole.logits)
    for mine, theirs in zip(cache.layers, whole[CACHE].layers, strict=True):
        assert_close("state", mine.recurrent_states[0], theirs.recurrent_states[0])
        assert_close("window", mine.conv_states[0], theirs.conv_states[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_second_turn_of_a_padded_batch_continues_the_first(model, processor, side):
    """Both turns are padded, so padding also stands between a warm state and its next tokens."""
    first = [torch.tensor([5, 7, 8, 6]), torch.tensor([5, 9, 6])]
    second = [torch.tensor([10]), torch.tensor([11, 12, 13, 14, 15])]

    def pad(rows):
        width = max(map(len, rows))
        ids, mask = torch.full((2, width), 3), torch.zeros(2, width, dtype=torch.long)
        for i, row in enumerate(rows):
            place = slice(width - len(row), None) if side == "left" else slice(len(row))
            ids[i, place], mask[i, place] = row, 1
        return ids, mask

    (ids1, mask1), (ids2, mask2) = pad(first), pad(second)
    cache = model(ids1, attention_mask=mask1, use_cache=True)[CACHE]
    logits = model(ids2, attention_mask=mask2, cache=cache, use_cache=True).logits
    for row in range(2):
        alone = model(torch.cat([first[row], second[row]])[None]).logits[0, -len(second[row]) :]
        assert_close("logits", logits[row][mask2[row].bool()], alone)


def test_images_are_encoded_once(model, processor, monkeypatch):
    calls = []
    forward = model.model.vision_tower.forward
    monkeypatch.setattr(model.model.vision_tower, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    generate(model, inputs_of(processor, "two images"), num_beams=3)
    assert len(calls) == 1


def test_a_streamer_prints_the_answer_as_it_comes(model, processor):
    inputs = inputs_of(processor, "one image")
    expected = processor.decode(generate(model, inputs)[0], skip_special_tokens=True)
    with redirect_stdout(io.StringIO()) as printed:
        generate(
            model,
            inputs,
            streamer=TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
    assert printed.getvalue().split() == expected.split()


def test_a_model_in_training_that_checkpoints_answers_too(processor):
    model = tiny_model()
    inputs = inputs_of(processor, "one image", "text only")
    expected = generate(model, inputs)
    model.train()
    model.gradient_checkpointing_enable()
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert torch.equal(generate(model, inputs), expected)
    assert model.prefix_state(**inputs).num_rows == 2
    assert layers and all(layer.gradient_checkpointing for layer in layers)


def test_sampling_with_a_seed_repeats_itself(model, processor):
    inputs = inputs_of(processor, "one image")
    outs = []
    for _ in range(2):
        torch.manual_seed(3)
        outs.append(generate(model, inputs, do_sample=True, num_return_sequences=3))
    assert torch.equal(*outs) and len({tuple(row.tolist()) for row in outs[0]}) > 1


def test_the_pipeline_takes_a_folder(model, processor, tmp_path):
    from PIL import Image

    model.float().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model.double()
    pipe = pipeline("image-text-to-text", model=str(tmp_path))
    image = Image.new("RGB", (30, 20), (200, 30, 30))
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": " what ?"}]}]
    out = pipe(text=chat, generate_kwargs={"max_new_tokens": 3}, return_full_text=False)
    assert out[0]["generated_text"]
    plain = pipe(images=image, text="<|user|><image> what ?<|assistant|>", generate_kwargs={"max_new_tokens": 3})
    assert plain[0]["generated_text"].endswith(out[0]["generated_text"])


def test_the_processor_counts_placeholders(processor):
    with pytest.raises(ValueError, match=r"the text has 2 <image> placeholder\(s\), but 1 image\(s\) are given"):
        processor(images=[picture(1)], text="<image> <image>", return_tensors="pt")
    with pytest.raises(ValueError, match=r"the text has 1 <image> placeholder\(s\), but 0 image\(s\) are given"):
        processor(text="<image> what", return_tensors="pt")
    with pytest.raises(ValueError, match=r"the text has 0 <image> placeholder\(s\), but 2 image\(s\) are given"):
        processor(images=[picture(1), picture(2)], text="what", return_tensors="pt")


def test_images_of_another_row_are_not_taken(processor):
    one, two = picture(1), picture(2)
    with pytest.raises(ValueError, match=r"text 0 has 2 <image> placeholder\(s\), but 1 image\(s\) are given"):
        processor(images=[[one], [two, two]], text=["<image> <image>", "<image>"], return_tensors="pt")
    out = processor(images=[[one], [two, two]], text=["<image>", "<image><image>"], padding=True, return_tensors="pt")
    assert out["pixel_values"].shape[0] == 3


def test_a_tokenizer_without_the_image_token_is_refused(processor):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from vlmamba import VLMambaProcessor

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")))
    with pytest.raises(ValueError, match="tokenizer: it has no token <image>"):
        VLMambaProcessor(image_processor=processor.image_processor, tokenizer=bare)


def test_a_generation_config_may_come_second_and_lack_tokens(model, processor):
    inputs = inputs_of(processor, *PROMPTS, side="right")
    expected = generate(model, inputs)
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, suppress_tokens=[0, 1, 2, 3, 4, 5, 6])
    out = model.generate(inputs["input_ids"], config, pixel_values=inputs["pixel_values"])
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], expected)


def test_the_chat_template_puts_images_where_they_stand(processor):
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "is "},
                {"type": "image", "text": None},
                {"type": "text", "text": " this"},
            ],
        },
        {"role": "assistant", "content": "a dog ."},
        {"role": "user", "content": "what ?"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "<|user|>is <image> this<|assistant|>a dog .</s><|user|>what ?<|assistant|>"


@pytest.mark.parametrize("shape", [(1, 1), (10000, 20), (20, 10000), (16, 16), (3, 200)])
def test_any_image_size_gives_the_same_number_of_tokens(processor, shape):
    image = torch.randint(0, 255, (3, *shape), dtype=torch.uint8)
    out = processor(images=image, text="<image>", return_tensors="pt")
    assert out["pixel_values"].shape == (1, 3, 16, 16) and out["input_ids"].tolist() == [[4] * 4]
    assert torch.isfinite(out["pixel_values"]).all()


def test_nothing_of_an_image_is_cropped_away(processor):
    image = torch.zeros(3, 16, 32, dtype=torch.uint8)
    image[:, :, :4] = image[:, :, -4:] = 255
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"][0, 0]
    assert pixels[8, 0] > 0.9 and pixels[8, -1] > 0.9 and pixels[8, 8] < -0.9
    assert pixels[0, 0] == pixels[-1, -1] and abs(pixels[0, 0]) < 0.1  # grey padding above and below


@pytest.mark.parametrize("name", golden.names("mamba1-lm"))
def test_the_official_language_model_is_met(name):
    fixture = golden.load(name)
    lm = from_official("mamba", fixture.weights, fixture.arguments)
    ids = fixture.io["input.ids"].long()
    prefix = fixture.config["prefix_len"]
    with torch.no_grad():
        fixture.check(lm(input_ids=ids).logits, "output.logits")
        out = lm(input_ids=ids[:, :prefix], use_cache=True)
        fixture.check(out.logits[:, -1:], "decode.prefill_last_logits")
        for i, layer in enumerate(out[CACHE].layers):
            fixture.check(layer.conv_states[0], f"decode.prefill.conv_state.{i}")
            fixture.check(layer.recurrent_states[0], f"decode.prefill.ssm_state.{i}")
        for step in range(fixture.config["n_steps"]):
            token = ids[:, prefix + step : prefix + step + 1]
            out = lm(input_ids=token, **{CACHE: out[CACHE]}, use_cache=True)
            fixture.check(out.logits[:, -1:], f"decode.step{step}_logits")
        fixture.check(out[CACHE].layers[0].recurrent_states[0], "decode.final.ssm_state.0")
        greedy = lm.generate(ids[:, :prefix], attention_mask=torch.ones_like(ids[:, :prefix]), max_new_tokens=12)
    expected = fixture.io["decode.greedy12_from_prefix"]
    assert torch.equal(greedy[:, -12:], expected[:, -12:].long())


def test_a_stock_model_answers_the_same_on_our_kernel():
    torch.manual_seed(0)
    stock = transformers.MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2)).eval()
    ids = torch.randint(0, 40, (2, 15))
    expected = stock(ids).logits
    torch.testing.assert_close(apply_kernels(stock)(ids).logits, expected)
    assert apply_kernels(stock) is stock
    with pytest.raises(ValueError, match="Linear has no mixer of a supported family"):
        apply_kernels(torch.nn.Linear(2, 2))


def test_the_language_model_keeps_our_mixer_when_reloaded(tmp_path):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, pad_token_id=3, eos_token_id=2)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    lm = MambaForCausalLM.from_pretrained(tmp_path).double().eval()
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 3, 3, 3]])
    together = lm.generate(ids, max_new_tokens=6, do_sample=False)[:, 5:]
    for row, length in enumerate((5, 2)):
        alone = lm.generate(ids[row : row + 1, :length], max_new_tokens=6, do_sample=False)[:, length:]
        assert torch.equal(together[row], alone[0])
    whole = lm(ids[:1])
    first = lm(ids[:1, :2], use_cache=True)
    second = lm(ids[:1, 2:], **{CACHE: first[CACHE]}, use_cache=True)
    torch.testing.assert_close(second.logits, whole.logits[:, 2:])
