# SPDX-License-Identifier: Apache-2.0
"""`vlmamba ask`: one question and its answer, or a file of them."""

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image
from typer.core import TyperCommand

from vlmamba.cli.errors import CommandError
from vlmamba.cli.options import Device, Dtype, MaxContext, MaxNewTokens, Model, Tiles
from vlmamba.cli.terminal import write

if TYPE_CHECKING:
    from vlmamba.cli.session import Answer, Session

HELP = """Answer a question about one picture, several or none.

The answer is written to stdout word by word. Pictures go in front of
the question; to place them yourself, write [cyan]<image>[/] once for each.

[bold]Examples[/]
  [green]vlmamba ask photo.png "What is this?"[/]
  [green]vlmamba ask a.png b.png "Is the animal in <image> also in <image>?"[/]
  [green]vlmamba ask photo.png "How many cats?" --json[/]
  [green]vlmamba ask photo.png --questions questions.txt[/]
  [green]vlmamba ask page.png "What is the total?" --tiles 12[/]
"""


class AskCommand(TyperCommand):
    """Shows that the last argument is the question."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:
        """The words after the command's name in the usage line."""
        return ["[OPTIONS]", "[IMAGE]...", "QUESTION"]


def ask(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]... QUESTION", help="Picture files, then the question.", show_default=False),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_new_tokens: MaxNewTokens = 64,
    tiles: Tiles = None,
    max_context: MaxContext = None,
    questions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Answer each line of a file (- for stdin), one line an answer; the pictures are read once.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead of the answer.")] = False,
) -> None:
    """Answer questions; see `HELP`."""
    *paths, question = arguments or [""]
    if questions is not None:
        _answer_all(questions, arguments or [], (model, device, dtype, tiles, max_context), max_new_tokens, as_json)
        return
    _check_question(question)

    from vlmamba.cli.messages import read_images, user_message
    from vlmamba.cli.session import Session

    message = user_message(question, read_images(paths))
    session = Session.load(model, device, dtype, tiles, max_context)
    answer = session.answer([message], max_new_tokens, write=None if as_json else write)
    write(_as_json(answer, question, paths, session) + "\n" if as_json else "\n")


def _answer_all(name: str, paths: list[str], load: tuple, max_new_tokens: int, as_json: bool) -> None:
    """One line for each line of a file; what is wrong with any line is said before the first answer."""
    from vlmamba.cli.dialogue import Pictures
    from vlmamba.cli.messages import read_images, user_message
    from vlmamba.cli.questions import counted, of_line, read_questions
    from vlmamba.cli.session import Session

    questions, images = read_questions(name), read_images(paths)
    for number, question in enumerate(questions, 1):
        try:
            user_message(question, images)
        except CommandError as error:
            raise of_line(name, number, error) from error
    session = Session.load(*load)
    pictures = Pictures(session, images)
    for number, question in counted(questions):
        try:
            answer = pictures.answer(question, max_new_tokens)
        except CommandError as error:
            raise of_line(name, number, error) from error
        line = _as_json(answer, question, paths, session) if as_json else " ".join(answer.text.split())
        write(line + "\n")


def _check_question(question: str) -> None:
    if not question.strip():
        raise CommandError("argument QUESTION: it is missing or blank; expected a text after the images")
    looks_like_a_picture = (
        " " not in question and os.path.splitext(question)[1].lower() in Image.registered_extensions()
    )
    if os.path.isfile(question) or looks_like_a_picture:
        raise CommandError(f"argument QUESTION: got the file {question!r}; expected a text after the images")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise CommandError(f"argument QUESTION: it is not valid text ({error.reason})") from error


def _as_json(answer: "Answer", question: str, paths: list[str], session: "Session") -> str:
    return json.dumps(
        {
            "answer": answer.text,
            "question": question,
            "images": paths,
            "model": str(session.folder),
            "device": str(session.model.device),
            "dtype": str(session.model.dtype).removeprefix("torch."),
            "backend": session.backend,
            "tokens": answer.tokens,
            "seconds": round(answer.seconds, 3),
        }
    )
