# SPDX-License-Identifier: Apache-2.0
"""`vlmamba ask --questions`: many questions about the same pictures; and prompts that are too long."""

import json

import pytest

from vlmamba.models.prefix import PrefixState
from vlmamba.models.vlmamba import VLMambaForConditionalGeneration, VLMambaModel

from .command import answered, refused, run
from .conftest import QUESTION

QUESTIONS = [QUESTION, "what ?", "the picture is ?", "is <image> red ?", QUESTION]


@pytest.fixture
def questions(tmp_path) -> str:
    """Path of a file, with the line ends of another system."""
    path = tmp_path / "questions.txt"
    path.write_bytes("\r\n".join(QUESTIONS).encode())
    return str(path)


def test_a_line_is_answered_as_the_question_alone(model_folder, blue, questions):
    lines = answered(run("ask", blue, "--questions", questions, "--model", model_folder)).splitlines()
    alone = [answered(run("ask", blue, question, "--model", model_folder)) for question in QUESTIONS]
    assert lines == [text.strip() for text in alone] and lines[0] == "the picture is blue"


def test_pictures_are_read_once(model_folder, red, blue, questions, monkeypatch):
    read, encoded = [], []
    prefix_state, features = VLMambaForConditionalGeneration.prefix_state, VLMambaModel.get_image_features

    def reading(self, **inputs) -> PrefixState:
        read.append(inputs["input_ids"].shape[1])
        return prefix_state(self, **inputs)

    monkeypatch.setattr(VLMambaForConditionalGeneration, "prefix_state", reading)
    monkeypatch.setattr(
        VLMambaModel, "get_image_features", lambda self, x, **k: encoded.append(len(x)) or features(self, x, **k)
    )
    lines = QUESTION + "\n" + "what ?\n" + "is <image> like <image> ?\n" + "and what is <image> and <image> ?\n"
    result = run("ask", red, blue, "--questions", "-", "--model", model_folder, input=lines)
    assert len(answered(result).splitlines()) == 4
    # once for the questions behind the pictures, once for each that has them inside
    assert len(read) == 3 and encoded == [2] * 3


def test_json_lines(model_folder, red, questions):
    lines = answered(run("ask", red, "--questions", questions, "--json", "--model", model_folder)).splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["question"] for line in found] == QUESTIONS and found[0]["answer"] == "the picture is red"
    alone = json.loads(answered(run("ask", red, QUESTION, "--json", "--model", model_folder)))
    assert list(found[0]) == list(alone) and found[0]["tokens"] == alone["tokens"]


def test_questions_without_pictures(model_folder):
    assert (
        len(answered(run("ask", "--questions", "-", "--model", model_folder, input="hello\nwhat ?\n")).splitlines())
        == 2
    )


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", ["it is empty"]),
        (b"what ?\n\nwhat ?", ["line 2", "blank"]),
        (b"what ?\nwh\xff ?\n", ["line 2", "UTF-8"]),
        (b"what ?\n<image> <image> ?", ["line 2", "2 <image>", "1 image(s)"]),
    ],
    ids=["empty", "blank", "no text", "placeholders"],
)
def test_a_bad_line_is_named_before_any_answer(content, words, model_folder, red, tmp_path):
    path = tmp_path / "questions.txt"
    path.write_bytes(content)
    refused(run("ask", red, "--questions", path, "--model", model_folder), f"--questions '{path}'", *words)


def test_a_file_that_cannot_be_read(model_folder, red, tmp_path):
    for path in (tmp_path, tmp_path / "none.txt"):
        refused(
            run("ask", red, "--questions", path, "--model", model_folder), f"--questions '{path}'", "cannot be read"
        )


def test_a_question_beside_a_file_is_taken_for_a_picture(model_folder, red, questions):
    refused(run("ask", red, QUESTION, "--questions", questions, "--model", model_folder), "IMAGE", QUESTION)


def test_a_prompt_that_is_too_long(model_folder, red, tmp_path):
    command = ["ask", red, QUESTION, "--model", model_folder]
    assert answered(run(*command, "--max-context", 24)) == "the picture is red\n"
    refused(run(*command, "--max-context", 23), "--max-context 23", "24 tokens (16 of them of pictures)", "at most 23")
    path = tmp_path / "questions.txt"
    path.write_text(f"what ?\n{QUESTION}\n")
    result = run("ask", red, "--questions", path, "--model", model_folder, "--max-context", 23)
    assert (result.exit_code, result.stdout.count("\n")) == (2, 1)
    assert "line 2: --max-context 23: the prompt has 24 tokens (16 of them of pictures)" in result.stderr


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_max_context_must_be_positive(number, model_folder):
    refused(run("ask", "what?", "--max-context", number, "--model", model_folder), "--max-context", repr(number))
