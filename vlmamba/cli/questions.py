# SPDX-License-Identifier: Apache-2.0
"""`vlmamba ask --questions`: a file of questions about the same pictures."""

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from vlmamba.cli.errors import CommandError

STDIN = "-"


def read_questions(name: str) -> list[str]:
    """The lines of a file, or of stdin if it is called "-".

    Raises:
        CommandError: it cannot be read, is empty, or a line is blank or no text; the line is named.
    """
    try:
        content = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    except OSError as error:
        raise CommandError(f"--questions '{name}': it cannot be read ({error.strerror or error})") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    if not lines:
        raise CommandError(f"--questions '{name}': it is empty; expected one question a line")
    return [_question(name, number, line) for number, line in enumerate(lines, 1)]


def _question(name: str, number: int, line: bytes) -> str:
    try:
        question = line.decode().strip()
    except UnicodeDecodeError as error:
        raise of_line(name, number, f"it is not valid UTF-8 text ({error.reason})") from error
    if not question:
        raise of_line(name, number, "it is blank; expected a question")
    return question


def of_line(name: str, number: int, problem: CommandError | str) -> CommandError:
    """An error that names the line, counted from 1."""
    return CommandError(f"--questions '{name}': line {number}: {str(problem).removeprefix('argument QUESTION: ')}")


def counted(questions: list[str]) -> Iterator[tuple[int, str]]:
    """Questions with the numbers of their lines; a bar on stderr if a person looks there who does not see answers."""
    console = Console(stderr=True)
    shown = console.is_terminal and not sys.stdout.isatty() and len(questions) > 1
    with Progress(console=console, transient=True, disable=not shown) as progress:
        yield from enumerate(progress.track(questions, description="answering"), 1)
