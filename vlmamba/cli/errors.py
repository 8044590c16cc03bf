# SPDX-License-Identifier: Apache-2.0
"""How the command fails: one line on stderr and an exit code, never a traceback."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

USER_MISTAKE = 2
FAILURE = 1
DEBUG_VARIABLE = "VLMAMBA_DEBUG"


class CommandError(Exception):
    """A problem to tell the user in one line.

    Args:
        message: names the argument, what came and what was expected.
        exit_code: of the process; 2 for a user's mistake, 1 for other failures.
    """

    def __init__(self, message: str, exit_code: int = USER_MISTAKE):
        super().__init__(message)
        self.exit_code = exit_code


def report(error: BaseException | str) -> None:
    """Write one line "Error: ..." to stderr, whatever line breaks the message has."""
    typer.echo(f"Error: {one_line(error)}", err=True)


def one_line(error: BaseException | str) -> str:
    """The message of an error in one line; its class where there is no message."""
    return " ".join(str(error).split()) or type(error).__name__


class OneLineErrors(TyperGroup):
    """A command group that reports every error in one line; set VLMAMBA_DEBUG=1 to see tracebacks."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:
        """Run the command and leave the process with its exit code."""
        # not every terminal can show every character of an answer
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(errors="replace")
        sys.exit(self._exit_code(args, prog_name, extra))

    def _exit_code(self, args: Sequence[str] | None, prog_name: str | None, extra: dict[str, Any]) -> int:
        try:
            code = super().main(args, prog_name, **{**extra, "standalone_mode": False})
            sys.stdout.flush()
            return code or 0
        except BrokenPipeError:
            _drop_stdout()
            return FAILURE
        except (CommandError, TyperException) as error:
            report(error.format_message() if isinstance(error, TyperException) else error)
            return error.exit_code
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            hint = f"set {DEBUG_VARIABLE}=1 for the traceback"
            report(f"{type(error).__name__}: {one_line(error)} ({hint})")
            return FAILURE


def _drop_stdout() -> None:
    """The reader is gone: what is still buffered must not raise again when Python exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
