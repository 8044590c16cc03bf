# SPDX-License-Identifier: Apache-2.0
"""`vlmamba chat`: conversations."""

import torch
from PIL import Image

from vlmamba.cli.dialogue import Dialogue
from vlmamba.cli.messages import user_message
from vlmamba.cli.session import Answer, Session

from .command import answered, refused, run
from .conftest import QUESTION


def test_chat_answers_each_line(model_folder, red, blue):
    lines = f"{QUESTION}\n\n/reset\n/image {blue}\n{QUESTION}\n/quit\n{QUESTION}\n"
    result = run("chat", red, "--model", model_folder, input=lines)
    assert answered(result) == "the picture is red\nthe picture is blue\n"


def talk(session: Session, colours: list[str], questions: list[str]) -> tuple[list[Answer], list[int]]:
    """Answers to questions, each about another picture, and how many tokens the model read for each."""
    dialogue, answers, read = Dialogue(session), [], []
    forward = session.model.forward
    session.model.forward = lambda input_ids, **k: read.append(input_ids.shape[1]) or forward(input_ids, **k)
    try:
        for colour, question in zip(colours, questions, strict=True):
            read.append(0)
            images = [Image.new("RGB", (40, 40), colour)] if colour else []
            answers.append(dialogue.answer(user_message(question, images)))
    finally:
        del session.model.forward
    turns, counts = -1, [0] * len(questions)
    for number in read:
        turns += number == 0
        counts[turns] += number
    return answers, counts


def test_a_turn_reads_its_own_tokens_only_and_answers_as_afresh(model_folder):
    session = Session.load(model_folder)
    session.model.double()
    colours, questions = ["red", "blue", "", "blue"], [QUESTION, QUESTION, "and what ?", "is <image> red ?"]
    answers, counts = talk(session, colours, questions)
    assert [answer.text for answer in answers[:2]] == ["the picture is red", "the picture is blue"]
    ids = torch.zeros(1, 0, dtype=torch.long)
    images, end = [], session.processor.tokenizer.eos_token_id
    for number, (colour, question, answer) in enumerate(zip(colours, questions, answers, strict=True)):
        if number:
            ids = torch.cat([ids, torch.tensor([[*(i for i in answers[number - 1].ids if i != end), end]])], dim=1)
        turn = user_message(question, [Image.new("RGB", (40, 40), colour)] if colour else [])
        text, new = session.prompt([turn])
        inputs = session.processor(images=new or None, text=text, return_tensors="pt")
        images += [inputs["pixel_values"].double()] if new else []
        ids = torch.cat([ids, inputs["input_ids"]], dim=1)
        fresh = session.generate({"input_ids": ids, "pixel_values": torch.cat(images)}, None, 64)
        assert fresh.ids == answer.ids
        # the turn, the end of the answer before it, the answer twice: as it came, and once more behind the turn
        assert counts[number] <= inputs["input_ids"].shape[1] + 1 + 2 * len(answer.ids)


def test_a_template_that_rewrites_earlier_turns_is_read_again(model_folder):
    session = Session.load(model_folder)
    template = session.processor.chat_template
    session.processor.chat_template = "{%- if messages | length > 1 -%}{{ '<|user|>hello' }}{%- endif -%}" + template
    answers, counts = talk(session, ["red", "blue"], [QUESTION, QUESTION])
    assert len(answers) == 2 and counts[1] > 2 * 16


def test_a_placeholder_that_was_said_is_no_image(model_folder, monkeypatch):
    session = Session.load(model_folder)
    dialogue = Dialogue(session)
    said = Answer(
        "the picture", 3, 0.1, (session.processor.image_token_id, *session.processor.tokenizer("the")["input_ids"])
    )
    with monkeypatch.context() as patch:
        patch.setattr(session, "generate", lambda *a: said)
        dialogue.answer(user_message("hello", []))
    assert dialogue.answer(user_message(QUESTION, [Image.new("RGB", (40, 40), "red")])).text


def test_a_conversation_that_is_too_long_goes_on_after_a_reset(model_folder, red):
    lines = f"{QUESTION}\n/image {red}\n{QUESTION}\n/reset\nhello\n"
    result = run("chat", red, "--model", model_folder, "--max-context", 30, input=lines)
    assert result.exit_code == 0 and result.stdout.count("\n") == 2
    assert result.stderr == (
        "Error: --max-context 30: the prompt has 53 tokens (32 of them of pictures); expected at most 30\n"
    )


def test_chat_goes_on_after_a_mistake(model_folder, red):
    lines = f"/image none.png\n/image\n/draw\n<image>?\n/help\n/image '{red}\n/image '{red}'\n{QUESTION}\n"
    result = run("chat", "--model", model_folder, input=lines)
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    errors = result.stderr.splitlines()
    assert all(line.startswith("Error: ") for line in errors)
    words = ("none.png", "missing", "/draw", "1 <image>", "'/")
    assert len(errors) == len(words)
    for line, word in zip(errors, words, strict=True):
        assert word in line


def test_chat_refuses_a_bad_first_image(model_folder):
    refused(run("chat", "none.png", "--model", model_folder), "IMAGE", "none.png")


def test_an_answer_cannot_smuggle_a_placeholder():
    from vlmamba.cli.messages import assistant_message

    assert assistant_message("a <image> b")["content"][0]["text"] == "a  b"
