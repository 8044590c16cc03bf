# SPDX-License-Identifier: Apache-2.0
"""Words to and from a person: answers go to stdout, all else to stderr and only if someone is looking."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape

PROMPT = "[bold cyan]you>[/] "


def write(text: str) -> None:
    """Show a piece of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def status(text: str) -> Iterator[None]:
    """Say on stderr what takes a while, if a person is looking."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


class Terminal:
    """Reads lines from a person or a pipe; speaks, beside the answers, only to a person."""

    def __init__(self):
        self.console = Console(stderr=True, highlight=False)
        self.interactive = sys.stdin.isatty()
        if self.interactive:
            # gives `input` editing and a history
            with suppress(ImportError):
                import readline  # noqa: F401

    def say(self, text: str) -> None:
        """A remark for a person."""
        if self.interactive:
            self.console.print(f"[dim]{escape(text)}[/]")

    def read(self) -> str | None:
        """The next line; None at the end of the input.

        Raises:
            KeyboardInterrupt: Ctrl-C, after an end of line.
        """
        if not self.interactive:
            return sys.stdin.readline() or None
        try:
            return input(self._prompt())
        except EOFError:
            self.console.print()
            return None
        except KeyboardInterrupt:
            self.console.print()
            raise

    def _prompt(self) -> str:
        """For `input`, which writes it to stdout: only there if that is the terminal."""
        if not sys.stdout.isatty():
            self.console.print(PROMPT, end="")
            return ""
        with self.console.capture() as capture:
            self.console.print(PROMPT, end="")
        if "readline" not in sys.modules:
            return capture.get()
        # readline counts the colours as width unless they are marked
        return re.sub("(\x1b\\[[0-9;]*m)", "\001\\1\002", capture.get())
