# SPDX-License-Identifier: Apache-2.0
"""Going on from the states after a beginning answers as reading the whole prompt: in float64, token for token."""

import io
from contextlib import redirect_stdout

import pytest
import torch
from transformers import Mamba2Config, MambaConfig, TextStreamer

from tests.models.prompts import NEW, generate, picture, processed
from tests.models.tiny import LANGUAGE_MODELS, tiny_model, tiny_processor, tiny_text_config
from vlmamba import Mamba2ForCausalLM, MambaForCausalLM, PrefixState, VLMambaForConditionalGeneration
from vlmamba.models.modeling_utils import CACHE

BEGINNING = "<|user|><image>"
QUESTIONS = [" what ?<|assistant|>", " how many things are there left of this ?<|assistant|>", "<|assistant|>"]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def state_of(model, processor, text: str = BEGINNING, shades=(1,), **options) -> PrefixState:
    return model.prefix_state(**processed(processor, [text], [picture(shade) for shade in shades]), **options)


def alone(model, processor, text: str, shades=(1,), **options) -> torch.Tensor:
    """The answer to one whole prompt."""
    return generate(model, processed(processor, [text], [picture(shade) for shade in shades]), **options)[0]


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [None, 1, 3])
def test_many_questions_about_one_image(processor, family, side, size):
    """Padded, in pieces and from a prefix at once."""
    model = tiny_model(text_config=tiny_text_config(family))
    state = state_of(model, processor, prefill_chunk_size=size)
    together = generate(model, processed(processor, QUESTIONS, [], side), prefix=state, prefill_chunk_size=size)
    assert together.shape == (len(QUESTIONS), NEW) and len(set(together.flatten().tolist())) > 2
    for row, question in enumerate(QUESTIONS):
        assert torch.equal(together[row], alone(model, processor, BEGINNING + question)), question


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
@pytest.mark.parametrize("size", [None, 2])
def test_beams(model, processor, options, size):
    state = state_of(model, processor)
    together = generate(model, processed(processor, QUESTIONS, []), prefix=state, prefill_chunk_size=size, **options)
    for row, question in enumerate(QUESTIONS):
        fresh = generate(model, processed(processor, [BEGINNING + question], [picture(1)]), **options)
        assert torch.equal(together.view(len(QUESTIONS), -1, NEW)[row], fresh), question


def test_samples(model, processor):
    state, outs = state_of(model, processor), []
    whole = processed(processor, [BEGINNING + QUESTIONS[0]], [picture(1)])
    for inputs, prefix in ((whole, None), (processed(processor, QUESTIONS[:1], []), state)):
        torch.manual_seed(3)
        outs.append(generate(model, inputs, prefix=prefix, do_sample=True, num_return_sequences=5))
    assert torch.equal(*outs) and len({tuple(row.tolist()) for row in outs[0]}) > 1


@pytest.mark.parametrize("size", [None, 1, 6])
def test_more_images_may_follow(model, processor, size):
    state = state_of(model, processor)
    rests = [" left of <image> ?<|assistant|>", " ?<|assistant|>", " is<image> this <image> ?<|assistant|>"]
    inputs = processed(processor, rests, [picture(2), picture(3), picture(4)], "right")
    for beams in (1, 3):
        together = generate(model, inputs, prefix=state, prefill_chunk_size=size, num_beams=beams)
        for row, (rest, shades) in enumerate(zip(rests, [(1, 2), (1,), (1, 3, 4)], strict=True)):
            assert torch.equal(together[row], alone(model, processor, BEGINNING + rest, shades, num_beams=beams)), rest


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [None, 1, 4])
def test_rows_of_their_own(model, processor, side, size):
    """A padded batch of beginnings, each with its own questions."""
    beginnings, shades = ["<|user|><image> this <image>", "<|user|>", "<|user|> is <image>"], [(1, 2), (), (3,)]
    images = [picture(shade) for row in shades for shade in row]
    state = model.prefix_state(**processed(processor, beginnings, images, side), prefill_chunk_size=size)
    rows = [2, 0, 1, 2]
    questions = [QUESTIONS[0], QUESTIONS[1], QUESTIONS[2], QUESTIONS[1]]
    inputs = processed(processor, questions, [], side)
    together = generate(model, inputs, prefix=state.select(rows), prefill_chunk_size=size)
    for row, (source, question) in enumerate(zip(rows, questions, strict=True)):
        assert torch.equal(together[row], alone(model, processor, beginnings[source] + question, shades[source]))


def test_a_prefix_may_follow_a_prefix(model, processor):
    first = state_of(model, processor)
    second = state_of(model, processor, " is this <image>", (2,), prefix=first)
    assert (first.num_tokens, second.num_tokens) == (5, 11)
    out = generate(model, processed(processor, QUESTIONS[:1], []), prefix=second)
    assert torch.equal(out[0], alone(model, processor, BEGINNING + " is this <image>" + QUESTIONS[0], (1, 2)))


@pytest.mark.parametrize("model_class", [MambaForCausalLM, Mamba2ForCausalLM])
def test_language_models(model_class):
    torch.manual_seed(0)
    config = MambaConfig if model_class is MambaForCausalLM else Mamba2Config
    more = {} if config is MambaConfig else {"num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4}
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.5}
    lm = model_class(config(**sizes, **more, pad_token_id=3, eos_token_id=2)).double().eval()
    state = lm.prefix_state(torch.tensor([[5, 6, 7, 8]]), prefill_chunk_size=3)
    rest = torch.tensor([[9, 10, 11], [12, 3, 3]])
    out = generate(lm, {"input_ids": rest}, prefix=state)
    for row, tokens in enumerate(([5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 12])):
        assert torch.equal(out[row], generate(lm, {"input_ids": torch.tensor([tokens])})[0])


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[9], [5, 7]]}, {"min_new_tokens": 9}],
)
def test_penalties_see_the_prefix(model, processor, options):
    state = state_of(model, processor, BEGINNING + " a dog a cat .")
    out = generate(model, processed(processor, [" ? a<|assistant|>"], []), prefix=state, **options)
    assert torch.equal(out[0], alone(model, processor, BEGINNING + " a dog a cat . ? a<|assistant|>", **options))


def test_lengths_count_the_prefix_and_sequences_begin_behind_it(model, processor):
    state, inputs = state_of(model, processor), processed(processor, QUESTIONS[:1], [])
    out = model.generate(**inputs, prefix=state, max_length=20, do_sample=False, return_dict_in_generate=True)
    assert out.sequences.shape == (1, 20 - state.num_tokens)
    assert torch.equal(out.sequences[:, :3], inputs["input_ids"])


def test_streaming(model, processor):
    state, inputs = state_of(model, processor), processed(processor, QUESTIONS[:1], [])
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with redirect_stdout(io.StringIO()) as printed:
        out = generate(model, inputs, prefix=state, streamer=streamer)
    assert printed.getvalue().split() == processor.decode(out[0], skip_special_tokens=True).split()


def test_embeddings_may_follow(model, processor):
    state, inputs = state_of(model, processor), processed(processor, QUESTIONS[:1], [])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    out = model.generate(inputs_embeds=embeds, prefix=state, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(out, generate(model, inputs, prefix=state))


def test_generating_changes_no_state(model, processor):
    state = state_of(model, processor)
    before = [tensor.clone() for tensor in (*state.windows, *state.states)]
    generate(model, processed(processor, QUESTIONS, []), prefix=state, num_beams=2)
    generate(model, processed(processor, QUESTIONS[:1], []), prefix=state)
    assert all(map(torch.equal, before, (*state.windows, *state.states)))
    with pytest.raises(AttributeError):
        state.states = ()


def test_no_image_is_encoded_again(model, processor, monkeypatch):
    state = state_of(model, processor)
    monkeypatch.setattr(model.model.vision_tower, "forward", None)
    generate(model, processed(processor, QUESTIONS, []), prefix=state, num_beams=2)


def test_save_and_load(model, processor, tmp_path):
    state, inputs = state_of(model, processor), processed(processor, QUESTIONS, [])
    state.save(tmp_path / "state.safetensors")
    loaded = PrefixState.load(tmp_path / "state.safetensors")
    assert str(loaded) == str(state) == "PrefixState(1 row(s), 5 tokens, 3 layers, cpu)"
    assert loaded.num_bytes == state.num_bytes < (tmp_path / "state.safetensors").stat().st_size < 20_000
    assert torch.equal(generate(model, inputs, prefix=loaded), generate(model, inputs, prefix=state))


def test_the_size_does_not_grow_with_the_prompt(model, processor):
    short, long = state_of(model, processor), state_of(model, processor, BEGINNING + " what is this ?" * 50)
    assert long.num_bytes - short.num_bytes == 8 * (long.num_tokens - short.num_tokens)


def test_a_state_moves_between_dtypes(model, processor):
    state, inputs = state_of(model, processor), processed(processor, QUESTIONS, [])
    expected = generate(model, inputs, prefix=state)
    half = state.to(torch.bfloat16)
    assert half.windows[0].dtype == torch.bfloat16 and half.states[0].dtype == torch.float32
    assert torch.equal(generate(model, inputs, prefix=state.to("cpu", torch.float64)), expected)
    single = tiny_model().float()
    assert generate(single, inputs, prefix=state).shape == generate(single, inputs, prefix=half).shape == (3, NEW)


def test_a_file_that_is_none_is_refused(tmp_path):
    from safetensors.torch import save_file

    other, text = tmp_path / "other.safetensors", tmp_path / "text"
    save_file({"a": torch.zeros(2)}, other)
    text.write_text("text")
    for path in (other, text, tmp_path):
        with pytest.raises(ValueError, match="it is no prefix state"):
            PrefixState.load(path)
    with pytest.raises(FileNotFoundError, match="none"):
        PrefixState.load(tmp_path / "none")


def test_a_state_of_another_model_is_refused(model, processor):
    state, inputs = state_of(model, processor), processed(processor, QUESTIONS, [])
    trained = tiny_model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.001)
    with pytest.raises(ValueError, match="prefix is of a model with other weights"):
        generate(trained, inputs, prefix=state)
    shallow = tiny_model(text_config={**tiny_text_config(), "num_hidden_layers": 2})
    with pytest.raises(ValueError, match="prefix is of a model with 3 layers, this one has 2"):
        generate(shallow, inputs, prefix=state)
    with pytest.raises(ValueError, match="other weights"):
        generate(tiny_model(text_config=tiny_text_config("mamba2")), inputs, prefix=state)


@pytest.mark.parametrize("other", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_tells_weights_apart_as_far_as_it_can(processor, other):
    model, inputs = tiny_model().bfloat16(), processed(processor, QUESTIONS, [])
    state = state_of(tiny_model().to(other), processor)
    assert generate(model, inputs, prefix=state).shape == (3, NEW)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
    with pytest.raises(ValueError, match="other weights"):
        generate(model, inputs, prefix=state)


def test_weights_on_disk(processor, tmp_path):
    tiny_model().float().save_pretrained(tmp_path / "model")
    model = VLMambaForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "off"
    )
    beginning = processed(processor, [BEGINNING], [picture(1)])
    state = model.prefix_state(beginning["input_ids"], pixel_values=beginning["pixel_values"].float())
    rest = processed(processor, QUESTIONS, [])
    whole = VLMambaForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    expected = whole.prefix_state(beginning["input_ids"], pixel_values=beginning["pixel_values"].float())
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(
        model.generate(**rest, prefix=state, **options), whole.generate(**rest, prefix=expected, **options)
    )


def test_quantized_weights(model, processor):
    torchao = pytest.importorskip("torchao.quantization")
    quantized = tiny_model().float()
    # its int8 takes no layer with one input, as the tiny time steps have
    torchao.quantize_(quantized, torchao.Int8WeightOnlyConfig(), lambda module, name: name.endswith("in_proj"))
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in processed(processor, QUESTIONS, []).items()}
    beginning = processed(processor, [BEGINNING], [picture(1)])
    state = quantized.prefix_state(beginning["input_ids"], pixel_values=beginning["pixel_values"].float())
    assert generate(quantized, inputs, prefix=state).shape == (3, NEW)
    with pytest.raises(ValueError, match="other weights"):
        generate(model, inputs, prefix=state)


def test_a_state_belongs_to_the_adapters_that_were_on(model, processor):
    peft = pytest.importorskip("peft")
    targets = {"target_modules": ["in_proj", "out_proj"], "init_lora_weights": False}
    adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(**targets), "one")
    adapted.add_adapter("two", peft.LoraConfig(**targets))
    adapted.eval()
    question = processed(processor, QUESTIONS[:1], [])
    states = {}
    for name in ("one", "two"):
        adapted.set_adapter(name)
        states[name] = state_of(adapted, processor)
        assert torch.equal(
            generate(adapted, question, prefix=states[name])[0], alone(adapted, processor, BEGINNING + QUESTIONS[0])
        )
    with pytest.raises(ValueError, match="other weights"):
        generate(adapted, question, prefix=states["one"])
    with adapted.disable_adapter():
        plain = generate(adapted, question, prefix=state_of(model, processor))
        with pytest.raises(ValueError, match="other weights"):
            generate(adapted, question, prefix=states["two"])
    assert torch.equal(plain[0], alone(model, processor, BEGINNING + QUESTIONS[0]))


def test_what_does_not_fit_is_named(model, processor):
    state, inputs = state_of(model, processor), processed(processor, QUESTIONS, [])
    with pytest.raises(ValueError, match="prefix has type str, expected a PrefixState"):
        generate(model, inputs, prefix="castle.safetensors")
    with pytest.raises(ValueError, match="prefix has 2 rows, the prompt 3; expected as many, or one for all"):
        generate(model, inputs, prefix=state.select([0, 0]))
    with pytest.raises(ValueError, match="use_cache is False, expected True"):
        generate(model, inputs, prefix=state, use_cache=False)
    with pytest.raises(ValueError, match="input_ids is missing, expected the tokens that follow the prefix"):
        model.generate(prefix=state)
    with pytest.raises(ValueError, match=r"the prompt has 1 row\(s\) of 0 new token\(s\)"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), prefix=state)
    with pytest.raises(ValueError, match=r"1 row\(s\) of 0 new token\(s\)"):
        model.prefix_state(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="both given"):
        generate(model, inputs, prefix=state, **{CACHE: object()})
    with pytest.raises(ValueError, match=r"input_ids has shape \(2,\), expected \[batch, length\]"):
        model.prefix_state(torch.tensor([7, 8]))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 1\), expected at least 2 columns"):
        model.prefix_state(torch.tensor([[7, 8]]), torch.ones(1, 1))
    with pytest.raises(IndexError, match=r"rows are \[0, 1\], expected some of 0 to 0"):
        state.select([0, 1])
    with pytest.raises(ValueError, match="dtype is torch.int8, expected floating point"):
        state.to(torch.int8)
