# SPDX-License-Identifier: Apache-2.0
"""Traversal of rationale: what comes through at the <tor> tokens, in training and in use."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from tests.close import assert_close
from tests.models.tiny import LANGUAGE_MODELS, SPECIAL, WORDS, tiny_model, tiny_text_config, tiny_tokenizer
from vlmamba import VLMambaImageProcessor, VLMambaProcessor
from vlmamba.cli.dialogue import Dialogue, Pictures
from vlmamba.cli.messages import user_message
from vlmamba.cli.session import Session
from vlmamba.data import ChatCollator, RationaleCollator
from vlmamba.models.modeling_utils import CACHE
from vlmamba.models.vlmamba.rationale import spread_tor

TOR, COUNT, NEW = len(SPECIAL + WORDS), 3, 6
REASON = "there is a dog left of a cat . how many things are there ?"
CHATS = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this ?"}]}],
    [{"role": "user", "content": "how many things are there left of a dog ?"}],
    [{"role": "user", "content": [{"type": "text", "text": "is "}, {"type": "image"}, {"type": "text", "text": " a"}]}],
]


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 255, (20, 20, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="module")
def processor() -> VLMambaProcessor:
    tokenizer = tiny_tokenizer([*WORDS, "<tor>"])
    tokenizer.add_special_tokens({"extra_special_tokens": [*SPECIAL[4:], "<tor>"]})
    image_processor = VLMambaImageProcessor(size={"height": 16, "width": 16})
    return VLMambaProcessor(image_processor, tokenizer, num_image_tokens=4, num_tor_tokens=COUNT)


def model_of(family: str = "mamba", rows: int = TOR, **changes):
    """A model whose language model has so many tokens: with `TOR` of them, none for <tor>."""
    own = {**tiny_text_config(family), "vocab_size": TOR + 1}
    text = {**tiny_text_config(), "vocab_size": rows}
    return tiny_model(rationale_config=own, tor_token_id=TOR, text_config=text, **changes)


@pytest.fixture(scope="module")
def model():
    return model_of()


def inputs_of(processor, chats, side: str = "left") -> dict[str, torch.Tensor]:
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    images = [picture(i) for i in range(sum(text.count("<image>") for text in texts))]
    out = dict(processor(images=images or None, text=texts, padding=True, padding_side=side, return_tensors="pt"))
    return {key: value.double() if key == "pixel_values" else value for key, value in out.items()}


def answers(model, inputs, **options) -> torch.Tensor:
    out = model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :]


def test_only_what_is_projected_at_the_tokens_enters(model, processor):
    inputs = inputs_of(processor, CHATS[:1])
    ids, traversal = inputs["input_ids"], model.model.rationale
    assert ids[0].tolist().count(TOR) == COUNT
    images = torch.cat(model.get_image_features(inputs["pixel_values"]).pooler_output)
    embeds = traversal.language_model.embeddings(ids)
    embeds[ids == 4] = traversal.vision_projector(images)
    hidden = traversal.language_model(inputs_embeds=embeds).last_hidden_state
    expected = traversal.tor_projector(hidden[ids == TOR])
    out = model(**inputs)
    assert_close("features", out.rationale_hidden_states, expected)
    whole = model.get_input_embeddings()(ids.clamp(max=TOR - 1))
    whole[ids == 4], whole[ids == TOR] = images, expected
    plain = model.model.language_model(inputs_embeds=whole).last_hidden_state
    assert_close("logits", out.logits, model.lm_head(plain))


def test_nothing_of_an_answer_is_seen(model, processor):
    inputs = inputs_of(processor, CHATS[1:2])
    alone = model(**inputs).rationale_hidden_states
    said = torch.cat([inputs["input_ids"], torch.tensor([[10, 11, 2]])], 1)
    assert_close("features", model(said).rationale_hidden_states, alone)


def test_what_the_small_model_is_given_matters(model, processor):
    inputs = inputs_of(processor, CHATS[1:2])
    told = torch.cat([inputs["input_ids"][:, :4], torch.tensor([[TOR, 9, 10, TOR, 12, TOR]])], 1)
    with_reason = model(**inputs, rationale_input_ids=told)
    assert not torch.allclose(with_reason.logits[:, -1], model(**inputs).logits[:, -1])
    padded = torch.cat([torch.tensor([[3, 3]]), told, torch.tensor([[3]])], 1)
    mask = (padded != 3).long()
    again = model(**inputs, rationale_input_ids=padded, rationale_attention_mask=mask)
    assert_close("logits", again.logits, with_reason.logits)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_answers_as_each_alone(processor, side, family):
    model = model_of(family)
    together = answers(model, inputs_of(processor, CHATS, side))
    images = iter(inputs_of(processor, CHATS)["pixel_values"])
    for row, chat in enumerate(CHATS):
        alone = inputs_of(processor, [chat])
        if "pixel_values" in alone:
            alone["pixel_values"] = next(images)[None]
        assert torch.equal(answers(model, alone)[0], together[row])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("told", [False, True])
def test_states_answer_as_recomputing(processor, told, options):
    model, inputs = model_of(rows=TOR + 1), inputs_of(processor, CHATS)
    if told:
        inputs["rationale_input_ids"] = torch.cat([inputs["input_ids"], torch.full((3, 1), 9)], 1)
        inputs["rationale_attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(3, 1)], 1).long()
    assert torch.equal(answers(model, inputs, **options), answers(model, inputs, use_cache=False, **options))


def test_a_prompt_without_the_tokens_is_answered_without_the_traversal(model):
    assert model(torch.tensor([[5, 7, 8, 6]])).rationale_hidden_states is None


def test_saved_and_loaded_it_is_the_same(processor, tmp_path):
    model = model_of(rows=TOR + 1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float64)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    inputs = inputs_of(loaded, CHATS)
    assert torch.equal(inputs["input_ids"], inputs_of(processor, CHATS)["input_ids"])
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert torch.equal(answers(again, inputs), answers(model, inputs))
    assert again.config.rationale_config.vocab_size == TOR + 1 and loaded.num_tor_tokens == COUNT


def test_both_language_models_take_new_tokens():
    model = model_of()
    model.resize_token_embeddings(TOR + 3)
    assert model.config.rationale_config.vocab_size == model.config.text_config.vocab_size == TOR + 3
    assert torch.isfinite(model(torch.tensor([[5, 7, TOR + 2, TOR, TOR]])).logits).all()


@pytest.mark.parametrize("options", [{}, {"suppress_tokens": [0]}, {"generation_config": GenerationConfig()}])
def test_the_token_is_never_said(processor, options):
    model, inputs = model_of(rows=TOR + 1, tie_word_embeddings=False), inputs_of(processor, CHATS[1:2])
    # a head that would say nothing else
    model.lm_head.weight.data.zero_()[TOR] = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **options)
    assert TOR not in out[0, inputs["input_ids"].shape[1] :]


def test_the_tokens_are_spread_as_officially():
    assert spread_tor("one two three four five six seven", 3) == "<tor>one two three <tor>four five six seven<tor>"
    words = spread_tor(" ".join(f"w{i}" for i in range(50))).split()
    assert [i for i, word in enumerate(words) if word.startswith("<tor>")] == list(range(0, 45, 5))
    assert words[-1] == "w49<tor>"
    with pytest.raises(ValueError, match="rationale has 26 words, expected 27 or more for 10 <tor>"):
        spread_tor(" ".join("w" * 26))


def examples() -> list[dict]:
    rows = []
    for index, chat in enumerate(CHATS):
        said = {"role": "assistant", "content": "a dog ."}
        images = [picture(index)] if isinstance(chat[0]["content"], list) else None
        rows.append({"messages": [*chat, said], "images": images, "rationale": REASON})
    return rows


def test_the_first_step_tells_the_small_model_and_asks_the_large_one(processor):
    batch = RationaleCollator(processor)(examples())
    decode = processor.tokenizer.decode
    for row in range(len(CHATS)):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        own = batch["rationale_input_ids"][row][batch["rationale_attention_mask"][row].bool()]
        assert decode(labels[labels != -100]) == f"{REASON} </s>"
        assert decode(own).endswith(decode(processor.tokenizer(spread_tor(REASON, COUNT))["input_ids"]))
        first = ids.tolist().index(TOR)
        # both begin with the question; nothing of the rationale comes before the language model's <tor>
        assert own[:first].tolist() == ids[:first].tolist() and own[first] == TOR


def test_both_steps_teach_what_they_should(processor):
    model = model_of().train()
    batch = RationaleCollator(processor)(examples())
    batch["pixel_values"] = batch["pixel_values"].double()
    model.set_stage("rationale")
    language = {n: p.clone() for n, p in model.model.language_model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, language[n]) for n, p in model.model.language_model.named_parameters())
    batch = ChatCollator(processor)(examples())
    assert "rationale_input_ids" not in batch
    batch["pixel_values"] = batch["pixel_values"].double()
    model.set_stage("finetune")
    model(**batch).loss.backward()
    still = {n.split(".")[1] for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {"vision_tower"}


def test_what_does_not_fit_is_named(model, processor):
    inputs = inputs_of(processor, CHATS[1:2])
    with pytest.raises(ValueError, match=r"input_ids have \[3\] <tor>, those of rationale_input_ids \[1\]"):
        model(**inputs, rationale_input_ids=torch.tensor([[5, TOR]]))
    with pytest.raises(ValueError, match="rationale_input_ids has 2 rows, expected 1"):
        model(**inputs, rationale_input_ids=torch.tensor([[5, TOR]] * 2))
    with pytest.raises(
        ValueError, match="the rationale has 1 image placeholder tokens, but the images give 0 features"
    ):
        model(**inputs, rationale_input_ids=torch.tensor([[4, TOR, TOR, TOR]]))
    with pytest.raises(ValueError, match="the model has no rationale_config"):
        tiny_model()(torch.tensor([[5, 7]]), rationale_input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="there are no input_ids"):
        embeds = model.get_input_embeddings()(torch.tensor([[5, 7]]))
        model(inputs_embeds=embeds, rationale_input_ids=inputs["input_ids"])
    warm = model(torch.tensor([[5, 7]]), use_cache=True)[CACHE]
    with pytest.raises(ValueError, match="the new tokens have 3 <tor>, whose features depend on all before them"):
        model(inputs["input_ids"], **{CACHE: warm})
    for size in (1, 4):
        with pytest.raises(ValueError, match="without cache, prefix or prefill_chunk_size"):
            model.generate(**inputs, prefill_chunk_size=size, max_new_tokens=2)
    with pytest.raises(Exception, match="tor_token_id is None, expected the id of <tor>"):
        tiny_model(rationale_config=tiny_text_config())
    with pytest.raises(Exception, match="tor_token_id is 22, expected one of rationale_config's 22 tokens"):
        tiny_model(rationale_config=tiny_text_config(), tor_token_id=TOR)
    with pytest.raises(Exception, match="rationale_config: a llama config is not supported"):
        tiny_model(rationale_config={"model_type": "llama"}, tor_token_id=1)
    with pytest.raises(ValueError, match="tokenizer: it has no token <tor>"):
        VLMambaProcessor(processor.image_processor, tiny_tokenizer(), num_tor_tokens=COUNT)
    with pytest.raises(ValueError, match="its num_tor_tokens is 0"):
        RationaleCollator(VLMambaProcessor(processor.image_processor, tiny_tokenizer()))


def test_states_take_tokens_of_a_later_turn_with_what_they_stand_for(model, processor):
    inputs = inputs_of(processor, CHATS[1:2])
    whole = model(**inputs).logits
    head, tail = inputs["input_ids"][:, :3], inputs["input_ids"][:, 3:]
    warm = model(head, use_cache=True)[CACHE]
    out = model(tail, rationale_input_ids=inputs["input_ids"], **{CACHE: warm})
    assert_close("logits", out.logits, whole[:, 3:])


def test_conversations_read_the_whole_prompt_again(model, processor):
    session = Session(model, processor, Path())
    dialogue, said = Dialogue(session), []
    for chat in CHATS[:2]:
        part = chat[0]["content"]
        text = part if isinstance(part, str) else part[-1]["text"]
        turn = user_message(text, [picture(0)] if not said else [])
        first = session.answer([*said, turn], NEW)
        assert dialogue.answer(turn, NEW).ids == first.ids
        said = list(dialogue.messages)
    pictures = Pictures(session, [picture(0)])
    assert pictures.answer("what is this ?", NEW).ids == session.answer(said[:1], NEW).ids
