# SPDX-License-Identifier: Apache-2.0
"""Cobra's prompts are the official builders' (cobra/models/backbones/llm/prompting)."""

import json

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tests import golden
from vlmamba.models.vlmamba.chat_templates import COBRA_BASE_CHAT_TEMPLATE, COBRA_CHAT_TEMPLATE
from vlmamba.models.vlmamba.convert_cobra import config_from_official, processor_of

TEMPLATES = {"zephyr": COBRA_CHAT_TEMPLATE, "mamba": COBRA_BASE_CHAT_TEMPLATE}
OFFICIAL = json.loads((golden.FOLDER / "cobra-prompts" / "prompts.json").read_text())
CASES = [(kind, index) for kind in TEMPLATES for index in range(len(OFFICIAL[kind]))]
TOKENIZER = golden.FOLDER.parent / "data" / "tokenizer" / "gpt_neox_20b.json"
ROLES = {"human": "user", "gpt": "assistant"}


def messages(turns: list) -> list[dict]:
    return [{"role": ROLES[role], "content": text} for role, text in turns]


def rendered(template: str, chat: list[dict]) -> tuple[str, list[str]]:
    """The prompt, and what of it stands between generation marks."""
    texts, spans = render_jinja_template([chat], chat_template=template, return_assistant_tokens_mask=True)
    return texts[0], [texts[0][start:end] for start, end in spans[0]]


@pytest.mark.parametrize(("kind", "index"), CASES)
def test_prompts_are_the_official_ones(kind, index):
    case = OFFICIAL[kind][index]
    prompt, answers = rendered(TEMPLATES[kind], messages(case["turns"]))
    assert prompt == case["prompt"]
    assert answers == case["wrapped"][1::2]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_images_stand_before_all_text(template):
    image, text = {"type": "image", "text": None}, {"type": "text", "text": " Is <image>it \n"}
    asked = [{"role": "user", "content": [text, image, {"type": "text", "text": "red?"}]}]
    more = [{"role": "assistant", "content": [{"type": "text", "text": "No"}]}, {"role": "user", "content": [image]}]
    alone, _ = rendered(template, [{"role": "user", "content": "Is it \nred?"}])
    assert rendered(template, asked)[0] == "<image>" + alone
    prompt, answers = rendered(template, asked + more)
    assert prompt.startswith(f"<image><image>{alone}No<|endoftext|>\n") and answers == ["No<|endoftext|>"]


def test_a_system_message_stands_in_front_of_the_question():
    system = {"role": "system", "content": "Be brief."}
    chat = [system, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    again = {"role": "user", "content": "When?"}
    assert rendered(COBRA_CHAT_TEMPLATE, [*chat, again])[0] == (
        "<|user|>\nBe brief.\n\nWhy?<|endoftext|>\n<|assistant|>\nSo.<|endoftext|>\n"
        "<|user|>\nWhen?<|endoftext|>\n<|assistant|>\n"
    )


@pytest.mark.skipif(not TOKENIZER.is_file(), reason="GPT-NeoX's tokenizer.json is not beside the golden folder")
@pytest.mark.parametrize(("kind", "index"), CASES)
def test_tokens_are_the_official_ones(kind, index):
    """In training each turn is tokenized by itself, to ask the whole prompt. With a line break between question and
    answer that is the same, but for the blank of an empty answer."""
    case = OFFICIAL[kind][index]
    plain = PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER))
    model = {"zephyr": "cobra-3b", "mamba": "cobra-base-3b"}[kind]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER))
    processor = processor_of(config_from_official({"model_id": model}), model, tokenizer)
    assert processor.image_token_id == 50277 and processor.num_image_tokens == 729
    chat = messages(case["turns"])
    prompt = processor.apply_chat_template(chat, tokenize=False)
    ids = processor(text=prompt)["input_ids"][0]
    assert ids == plain(case["prompt"]).input_ids
    if kind == "zephyr":
        chat = chat[:2]
        turns = [plain(text, add_special_tokens=False).input_ids for text in case["wrapped"][:2]]
        labels = [token if turn % 2 else -100 for turn, tokens in enumerate(turns) for token in tokens]
        found = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ours = [t if m else -100 for t, m in zip(found["input_ids"][0], found["assistant_masks"][0], strict=True)]
        assert ours == labels
