# SPDX-License-Identifier: Apache-2.0
"""What the page of `vlmamba serve-demo` answers, from what it shows: streamed, and one answer at a time."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vlmamba.cli.errors import CommandError
from vlmamba.cli.messages import assistant_message, user_message
from vlmamba.data.images import ImageError, load_image

if TYPE_CHECKING:
    from vlmamba.cli.session import Answer, Session

LONGEST_QUESTION = 4000
MOST_PICTURES = 16


class Answers:
    """The answers of one model to many conversations.

    A conversation is what a page shows of it; nothing else is kept. One thread computes all answers, one after the
    other, so conversations never mix.

    Args:
        session: answers.
        max_new_tokens: longest answer.
    """

    def __init__(self, session: "Session", max_new_tokens: int):
        self.session = session
        self.max_new_tokens = max_new_tokens
        self.thread = ThreadPoolExecutor(1, "answers")

    async def stream(self, history: list[dict]) -> AsyncIterator[str]:
        """The answer to the last question of a conversation; closing the iterator ends the generation.

        Args:
            history: as of `messages`.

        Yields:
            The answer so far, longer with each word.

        Raises:
            CommandError: the question cannot be answered, or the answer is empty.
        """
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        left = threading.Event()

        def compute() -> "Answer":
            return self.session.answer(messages(history), self.max_new_tokens, write, left.is_set)

        def write(piece: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        answer = loop.run_in_executor(self.thread, compute)
        answer.add_done_callback(lambda _: pieces.put_nowait(None))
        text = ""
        try:
            while (piece := await pieces.get()) is not None:
                text += piece
                yield text
            if not (text := answer.result().text):
                raise CommandError("the model has nothing to say to this")
            yield text
        finally:
            left.set()
            answer.cancel()


def messages(history: list[dict]) -> list[dict]:
    """The chat messages for the model.

    A question that was stopped before its answer began is left out; its pictures, still to be seen in the page, join
    the next one.

    Args:
        history: messages of the page, the last one a question: `{"role", "content"}` with lists of
            `{"type": "file", "file": {"path": path}}` and `{"type": "text", "text": text}` as content.

    Raises:
        CommandError: the last message is no question that can be answered; the text says why.
    """
    found, question, images, pictures = [], "", [], 0
    for entry in history:
        if entry["role"] == "user":
            question = text_of(entry)
            images += [_read_image(path) for path in files_of(entry)]
            pictures += len(files_of(entry))
        else:
            found += [user_message(question, images), assistant_message(text_of(entry))]
            images = []
    if not question:
        raise CommandError("the question is missing")
    if len(question) > LONGEST_QUESTION:
        raise CommandError(f"the question has {len(question)} characters; expected at most {LONGEST_QUESTION}")
    if pictures > MOST_PICTURES:
        raise CommandError(f"the conversation would have {pictures} pictures; expected at most {MOST_PICTURES}")
    return [*found, user_message(question, images)]


def text_of(entry: dict) -> str:
    """The words of a message of the page."""
    return "\n".join(part["text"] for part in entry["content"] if part["type"] == "text").strip()


def files_of(entry: dict) -> list[str]:
    """The paths of the pictures of a message of the page."""
    return [part["file"]["path"] for part in entry["content"] if part["type"] == "file"]


def _read_image(path: str) -> Image.Image:
    # the folder is the server's business: a person knows the picture by its name
    name = Path(path).name
    try:
        file = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        raise CommandError(f"the picture {name!r} is no longer here; clear the conversation") from error
    file.name = name
    try:
        return load_image(file)
    except ImageError as error:
        raise CommandError(str(error)) from error
