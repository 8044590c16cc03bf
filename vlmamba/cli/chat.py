# SPDX-License-Identifier: Apache-2.0
"""`vlmamba chat`: a conversation about pictures."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from vlmamba.cli.errors import CommandError, report
from vlmamba.cli.options import Device, Dtype, MaxContext, MaxNewTokens, Model, Tiles
from vlmamba.cli.terminal import Terminal, write

if TYPE_CHECKING:
    from vlmamba.cli.session import Session

HELP = """Talk about pictures, turn by turn.

Pictures join the next question. Every line of a piped stdin is a question.

[bold]While talking[/]
  [cyan]/image PATH[/]   add a picture to the next question
  [cyan]/reset[/]        forget pictures and conversation
  [cyan]/help[/]         this list
  [cyan]/quit[/]         leave, as do Ctrl-D and Ctrl-C

[bold]Examples[/]
  [green]vlmamba chat photo.png[/]
  [green]vlmamba chat photo.png < questions.txt[/]
"""
COMMANDS = "/image PATH adds a picture, /reset forgets everything, /help shows this, /quit leaves"


def chat(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE", help="Picture files.", show_default=False)
    ] = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_new_tokens: MaxNewTokens = 64,
    tiles: Tiles = None,
    max_context: MaxContext = None,
) -> None:
    """Talk until the input ends; see `HELP`."""
    from vlmamba.cli.messages import read_images
    from vlmamba.cli.session import Session

    pictures = read_images(images or [])
    terminal = Terminal()
    session = Session.load(model, device, dtype, tiles, max_context)
    conversation = Conversation(session, max_new_tokens, pictures, terminal)
    terminal.say(COMMANDS)
    while (line := terminal.read()) is not None:
        try:
            if conversation.take(line.strip()):
                return
        except CommandError as error:
            report(error)


class Conversation:
    """The turns so far.

    Args:
        session: answers.
        max_new_tokens: longest answer.
        images: pictures for the first question.
        terminal: for remarks.
    """

    def __init__(self, session: "Session", max_new_tokens: int, images: list, terminal: Terminal):
        self.session = session
        self.max_new_tokens = max_new_tokens
        self.terminal = terminal
        self._begin(images)

    def _begin(self, images: list) -> None:
        from vlmamba.cli.dialogue import Dialogue

        self.images = images
        self.dialogue = Dialogue(self.session)

    def take(self, line: str) -> bool:
        """Follow a command or answer a question; True when the conversation is over.

        Raises:
            CommandError: the line cannot be followed; the conversation is as before.
        """
        command, _, argument = line.partition(" ")
        if command == "/quit":
            return True
        if command == "/help":
            self.terminal.say(COMMANDS)
        elif command == "/reset":
            self._begin([])
            self.terminal.say("everything is forgotten")
        elif command == "/image":
            self._add_image(_unquoted(argument.strip()))
        elif command.startswith("/"):
            raise CommandError(f"unknown command {command!r}; {COMMANDS}")
        elif line:
            self._answer(line)
        return False

    def _add_image(self, path: str) -> None:
        from vlmamba.cli.messages import read_images

        if not path:
            raise CommandError("/image: the path is missing; expected /image PATH")
        self.images += read_images([path])
        self.terminal.say(f"{len(self.images)} picture(s) wait for the next question")

    def _answer(self, question: str) -> None:
        from vlmamba.cli.messages import user_message

        self.dialogue.answer(user_message(question, self.images), self.max_new_tokens, write)
        write("\n")
        self.images = []


def _unquoted(path: str) -> str:
    """Terminals put quotes around a file that is dragged into them."""
    quoted = len(path) > 1 and path[0] == path[-1] and path[0] in "\"'"
    return os.path.expanduser(path[1:-1] if quoted else path)
