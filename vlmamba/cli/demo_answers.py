# SPDX-License-Identifier: Apache-2.0
"""What the page of `vlmamba serve-demo` answers: streamed, one at a time, and a sentence for what went wrong."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from vlmamba.cli.errors import CommandError, one_line, report
from vlmamba.cli.messages import assistant_message, user_message
from vlmamba.data.images import ImageError, load_image

if TYPE_CHECKING:
    from PIL import Image

    from vlmamba.cli.session import Answer, Session

LONGEST_QUESTION = 4000
MOST_PICTURES = 16
# marks, in the page's history, what was said in place of an answer
NO_ANSWER = "no-answer"


class Answers:
    """The answers of one model to many conversations.

    A conversation is what the page shows of it; nothing else is kept. All answers are computed by one thread, one after
    the other, so conversations never mix.

    Args:
        session: answers.
        max_new_tokens: longest answer.
    """

    def __init__(self, session: "Session", max_new_tokens: int):
        self.session = session
        self.max_new_tokens = max_new_tokens
        self.thread = ThreadPoolExecutor(1, "answers")

    async def stream(self, message: dict, history: list[dict]) -> AsyncIterator[str | dict]:
        """The answer to a message, longer with each word; closing the iterator ends the generation.

        Args:
            message: `{"text": question, "files": [path, ...]}`.
            history: the messages before, as the page's chat shows them.

        Yields:
            The answer so far; where there is none, a message of the chat with a sentence that says why.
        """
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        left = threading.Event()

        def write(piece: str) -> None:
            if left.is_set():
                raise _Left
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        answer = loop.run_in_executor(self.thread, self._answer, message, history, write)
        answer.add_done_callback(lambda _: pieces.put_nowait(None))
        text = ""
        try:
            while (piece := await pieces.get()) is not None:
                text += piece
                yield text
            yield answer.result().text or _no_answer("The model has nothing to say to this.")
        except CommandError as error:
            yield _no_answer(_sentence(error))
        # a traceback is for nobody who looks at the page
        except Exception as error:
            report(f"{type(error).__name__}: {one_line(error)}")
            yield _no_answer(_sentence(f"the model failed: {one_line(error)}"))
        finally:
            left.set()
            answer.cancel()

    def _answer(self, message: dict, history: list[dict], write: Callable[[str], None]) -> "Answer":
        return self.session.answer(messages(message, history), self.max_new_tokens, write)


class _Left(Exception):
    """Nobody waits for the rest of an answer."""


def messages(message: dict, history: list[dict]) -> list[dict]:
    """The chat messages for the model.

    Questions without an answer are left out; their pictures, still to be seen in the page, join the next question.

    Args:
        message: as of `Answers.stream`.
        history: as of `Answers.stream`.

    Raises:
        CommandError: the message is no question that can be answered; the text says why.
    """
    found, question, images = [], "", []
    for entry in history:
        if entry["role"] == "user":
            question = _text(entry)
            images += _readable_images(entry)
        elif (entry.get("metadata") or {}).get("id") != NO_ANSWER:
            found += [user_message(question, images), assistant_message(_text(entry))]
            images = []
    images += [_read_image(path) for path in message["files"]]
    question = message["text"].strip()
    _check(question, sum(part["type"] == "image" for turn in found for part in turn["content"]) + len(images))
    return [*found, user_message(question, images)]


def _check(question: str, pictures: int) -> None:
    if not question:
        raise CommandError("the question is missing; write one" + " about the picture" * bool(pictures))
    if len(question) > LONGEST_QUESTION:
        raise CommandError(f"the question has {len(question)} characters; expected at most {LONGEST_QUESTION}")
    if pictures > MOST_PICTURES:
        raise CommandError(f"these would be {pictures} pictures; expected at most {MOST_PICTURES} in a conversation")


def _text(entry: dict) -> str:
    return "\n".join(part["text"] for part in entry["content"] if part["type"] == "text")


def _readable_images(entry: dict) -> list["Image.Image"]:
    """Those of a message; what cannot be read has been complained about when it came."""
    images = []
    for part in entry["content"]:
        if part["type"] == "file":
            try:
                images.append(_read_image(part["file"]["path"]))
            except ImageError:
                continue
    return images


def _read_image(path: str) -> "Image.Image":
    try:
        file = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        name = Path(path).name
        raise CommandError(f"the picture {name!r} is no longer here; clear the chat, upload it again") from error
    # the folder is the server's business
    file.name = Path(path).name
    return load_image(file)


def _no_answer(sentence: str) -> dict:
    return {"role": "assistant", "content": f"⚠️ {sentence}", "metadata": {"id": NO_ANSWER}}


def _sentence(error: BaseException | str) -> str:
    text = one_line(error).replace("argument QUESTION: it", "the question").rstrip(".")
    return f"{text[0].upper()}{text[1:]}."
