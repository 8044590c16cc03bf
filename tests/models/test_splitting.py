# SPDX-License-Identifier: Apache-2.0
"""Prompts are cut where their tokens stay the same, or not at all; prompts that are too long are refused."""

import pytest
import torch
from tokenizers import pre_tokenizers

from tests.models.prompts import generate, picture, processed
from tests.models.tiny import tiny_model, tiny_processor
from vlmamba.models.vlmamba.splitting import check_split


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def conversation(question: str, images: int = 1) -> list[dict]:
    parts = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


QUESTIONS = [" what ?", " how many things are there ?"]


def test_questions_about_one_image(processor):
    model = tiny_model()
    beginning, rests = processor.split_prompt([conversation(question) for question in QUESTIONS])
    assert beginning == "<|user|><image>" and rests == [question + "<|assistant|>" for question in QUESTIONS]
    state = model.prefix_state(**processed(processor, [beginning], [picture(1)]))
    together = generate(model, processed(processor, rests, []), prefix=state)
    for row, question in enumerate(QUESTIONS):
        text = processor.apply_chat_template(conversation(question), add_generation_prompt=True)
        assert torch.equal(together[row], generate(model, processed(processor, [text], [picture(1)]))[0])


def test_one_conversation(processor):
    turns = [*conversation(" what ?"), {"role": "assistant", "content": "a dog ."}, *conversation(" this ?", 2)]
    beginning, rest = processor.split_prompt(turns)
    assert beginning == "<|user|><image> what ?<|assistant|>a dog .</s><|user|><image><image>"
    assert rest == " this ?<|assistant|>"


def test_what_cannot_be_cut_is_named(processor):
    with pytest.raises(ValueError, match="conversation 1 has no image, expected one to cut the prompt after"):
        processor.split_prompt([conversation("what"), conversation("what", 0)])
    with pytest.raises(ValueError, match="conversations is empty, expected chat messages"):
        processor.split_prompt([])
    with pytest.raises(ValueError, match=r"conversation 1 begins with '<\|user\|><image><image>', the first with"):
        processor.split_prompt([conversation("what"), conversation("what", 2)])


def test_a_cut_inside_a_word_is_refused(processor):
    check_split(processor.tokenizer, "what is", " this")
    with pytest.raises(ValueError, match=r"cannot be cut between 'what is a do' and 'g \?'.*\['<unk>', '<unk>'\]"):
        check_split(processor.tokenizer, "what is a do", "g ?")


def test_a_tokenizer_that_adds_tokens_to_each_part_is_told():
    from tokenizers import processors

    tokenizer = tiny_processor().tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    with pytest.raises(ValueError, match="add_special_tokens=False"):
        check_split(tokenizer, "what", " is")
    check_split(tokenizer, "what", " is", add_special_tokens=False)


@pytest.mark.parametrize("padding", [False, True, "max_length"])
def test_a_prompt_that_is_too_long_is_refused(processor, padding):
    texts = ["<image> what ?", "what is this ?"]
    batch = processor(images=[picture(1)], text=texts, padding=padding, max_length=6)
    assert [sum(mask) for mask in batch["attention_mask"]] == [6, 4]
    with pytest.raises(ValueError, match=r"text 0 has 6 tokens \(4 of them of images\), expected at most max_length 5"):
        processor(images=[picture(1)], text=texts, padding=padding, max_length=5)
    with pytest.raises(ValueError, match=r"text 1 has 4 tokens \(0 of them of images\), expected at most max_length 3"):
        processor(text=["what", texts[1]], padding=True, max_length=3, return_tensors="pt")
    with pytest.raises(ValueError, match=r"text 0 has 4 tokens"):
        processor(text=texts[1], max_length=3, return_tensors="pt")
