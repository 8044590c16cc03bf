# SPDX-License-Identifier: Apache-2.0
"""`vlmamba ask`: one question, one answer."""

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image
from typer.core import TyperCommand

from vlmamba.cli.errors import CommandError
from vlmamba.cli.options import Device, Dtype, MaxNewTokens, Model
from vlmamba.cli.terminal import write

if TYPE_CHECKING:
    from vlmamba.cli.session import Answer, Session

HELP = """Answer one question about one picture, several or none.

The answer is written to stdout word by word. Pictures go in front of
the question; to place them yourself, write [cyan]<image>[/] once for each.

[bold]Examples[/]
  [green]vlmamba ask photo.png "What is this?"[/]
  [green]vlmamba ask a.png b.png "Is the animal in <image> also in <image>?"[/]
  [green]vlmamba ask photo.png "How many cats?" --json[/]
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the answer.")] = False,
) -> None:
    """Answer one question; see `HELP`."""
    *paths, question = arguments or [""]
    _check_question(question)

    from vlmamba.cli.messages import read_images, user_message
    from vlmamba.cli.session import Session

    message = user_message(question, read_images(paths))
    session = Session.load(model, device, dtype)
    answer = session.answer([message], max_new_tokens, write=None if as_json else write)
    write(_as_json(answer, question, paths, session) + "\n" if as_json else "\n")


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
