# SPDX-License-Identifier: Apache-2.0
"""`vlmamba serve-demo` without a browser: the command's mistakes, and what the page is answered."""

import asyncio
import socket
import threading
from contextlib import aclosing
from types import SimpleNamespace

import pytest

from vlmamba.cli import serve_demo
from vlmamba.cli.demo_answers import LONGEST_QUESTION, MOST_PICTURES, Answers, messages
from vlmamba.cli.errors import CommandError
from vlmamba.cli.session import Session

from .command import answered, refused, run
from .conftest import QUESTION


def said(role: str, text: str, *paths: object) -> dict:
    """A message as the page's chat shows it."""
    files = [{"type": "file", "file": {"path": str(path)}} for path in paths]
    return {"role": role, "content": [*files, {"type": "text", "text": text}]}


def texts(answers: Answers, *history: dict) -> list[str]:
    async def collect() -> list[str]:
        return [text async for text in answers.stream(list(history))]

    return asyncio.run(collect())


# the command


def test_a_port_in_use_is_one_line(model_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run("serve-demo", "--port", port, "--model", model_folder), "--port", str(port), "in use")


@pytest.mark.parametrize("port", ["x", "-1", "65536", "80.5"])
def test_what_is_no_port_is_refused(port):
    refused(run("serve-demo", f"--port={port}"), "--port", repr(port), "65535")


def test_an_address_of_another_machine_is_refused(model_folder):
    refused(run("serve-demo", "--host", "192.0.2.1", "--port", 0, "--model", model_folder), "--host '192.0.2.1'")


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(serve_demo, "find_spec", lambda name: None)
    refused(run("serve-demo"), "gradio", 'pip install "vlmamba[demo]"')


def test_a_wrong_model_is_said_before_the_server_starts(tmp_path):
    pytest.importorskip("gradio")
    refused(run("serve-demo", "--port", 0, "--model", tmp_path), f"--model '{tmp_path}'", "config.json")


# answers


@pytest.fixture(scope="module")
def answers(model_folder) -> Answers:
    return Answers(Session.load(model_folder, "cpu"), 64)


def test_an_answer_grows_word_by_word_to_that_of_ask(answers, model_folder, red):
    found = texts(answers, said("user", QUESTION, red))
    assert found == ["the", "the picture", "the picture is", "the picture is red", "the picture is red"]
    assert answered(run("ask", red, QUESTION, "--model", model_folder, "--device", "cpu")) == f"{found[-1]}\n"


def test_a_conversation_goes_to_the_model_as_it_is_shown(red, blue):
    history = [said("user", QUESTION, red), said("assistant", "it is <image> red"), said("user", "and ?", blue)]
    first, answer, second = messages(history)
    assert [part["type"] for part in first["content"]] == ["image", "text"]
    assert answer == {"role": "assistant", "content": [{"type": "text", "text": "it is  red"}]}
    assert second["content"][0]["image"].getpixel((0, 0)) == (0, 0, 255)
    assert second["content"][1]["text"] == "and ?"


def test_pictures_of_a_question_that_was_stopped_join_the_next(red, blue):
    history = [said("user", "what ?", red), said("user", "<image> or <image> ?", blue)]
    (turn,) = messages(history)
    assert [part.get("text", "a picture") for part in turn["content"]] == ["a picture", " or ", "a picture", " ?"]


def test_what_cannot_be_asked_is_said_in_words(red, tmp_path):
    fake, gone = tmp_path / "notes.png", tmp_path / "gone.png"
    fake.write_text("no picture")
    for message, words in (
        (said("user", " ", red), "the question is missing"),
        (said("user", "a" * (LONGEST_QUESTION + 1)), f"{LONGEST_QUESTION + 1} characters"),
        (said("user", "what ?", *[red] * (MOST_PICTURES + 1)), f"{MOST_PICTURES + 1} pictures"),
        (said("user", "<image> or <image> ?", red), "it has 2 <image> placeholder"),
        (said("user", "what ?", fake), "'notes.png': it is not an image"),
        (said("user", "what ?", gone), "'gone.png' is no longer here"),
    ):
        with pytest.raises(CommandError, match=words) as caught:
            messages([message])
        # where uploads lie is not the person's business
        assert str(tmp_path) not in str(caught.value)


class Endless:
    """A session that never comes to an end by itself, and counts who is in it."""

    def __init__(self):
        self.inside = 0
        self.most = 0

    def answer(self, messages: list[dict], max_new_tokens: int, write, stop) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        while not stop():
            write(messages[-1]["content"][0]["text"])
        self.inside -= 1


def test_a_session_stops_when_told_to(answers, red):
    turn = messages([said("user", QUESTION, red)])
    told = iter([False, True])
    assert answers.session.answer(turn, stop=lambda: next(told)).text == "the picture"


def test_leaving_ends_the_generation():
    session = Endless()
    answers = Answers(session, 64)

    async def leave_early() -> str:
        async with aclosing(answers.stream([said("user", "a")])) as stream:
            return await anext(stream)

    assert asyncio.run(leave_early()) == "a"
    answers.thread.shutdown(wait=True)
    assert session.inside == 0


def test_conversations_take_turns_and_do_not_mix():
    session = Endless()
    answers = Answers(session, 64)

    async def first_words(question: str) -> str:
        async with aclosing(answers.stream([said("user", question)])) as stream:
            return [await anext(stream) for _ in range(5)][-1]

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(first_words(question) for question in "abc"))

    assert asyncio.run(all_at_once()) == ["aaaaa", "bbbbb", "ccccc"]
    answers.thread.shutdown(wait=True)
    assert session.most == 1


def test_a_question_that_is_left_while_it_waits_is_never_asked():
    session = Endless()
    answers = Answers(session, 64)
    free = threading.Event()
    answers.thread.submit(free.wait)

    async def leave_at_once() -> None:
        waiting = asyncio.ensure_future(anext(answers.stream([said("user", "a")])))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])

    asyncio.run(leave_at_once())
    free.set()
    answers.thread.shutdown(wait=True)
    assert session.most == 0


def test_an_empty_answer_is_said_to_be_one():
    class Silent:
        def answer(self, messages, max_new_tokens, write, stop):
            return SimpleNamespace(text="")

    with pytest.raises(CommandError, match="nothing to say"):
        texts(Answers(Silent(), 64), said("user", "a"))


# the page's own functions


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("gradio")
    from vlmamba.cli import demo_page

    return demo_page


def test_a_question_that_cannot_be_taken_stays_in_the_box(page, red):
    import gradio

    box, chat, problem = page._ask({"text": "<image> or <image> ?", "files": [red]}, [])
    assert box == chat == gradio.skip()
    assert "The question has 2 &lt;image&gt; placeholder(s)" in problem and 'role="alert"' in problem


def test_a_question_is_shown_while_it_waits(page, red):
    box, chat, problem = page._ask({"text": " what ? ", "files": [red]}, [said("user", "a"), said("assistant", "b")])
    assert (chat[-1], problem) == ({"role": "user", "content": [{"path": red}, "what ?"]}, "")
    assert (box.interactive, box.stop_btn) == (False, True)


def test_undo_puts_the_question_back(page, red):
    history = [said("user", "a"), said("assistant", "b"), said("user", "what ?", red), said("assistant", "c")]
    assert page._undo(history) == ({"text": "what ?", "files": [red]}, history[:2], "")


def test_a_failure_is_a_sentence_in_the_page_and_a_line_on_stderr(page, capsys):
    assert ">The model failed: no &lt;memory&gt;.</p>" in page._problem(RuntimeError("no\n<memory>"))
    assert capsys.readouterr().err == "Error: RuntimeError: no <memory>\n"


def test_the_page_says_which_model_answers(page, answers):
    about = page._about(answers.session)
    for words in ("<b>tiny</b>", "parameters", answers.session.backend, "float32", "cpu"):
        assert words in about
    assert "bundled" not in about
    assert [page._count(number) for number in (999, 5_100_000, 2_800_000_000)] == ["999", "5.1 million", "2.8 billion"]
