# SPDX-License-Identifier: Apache-2.0
"""The `vlmamba` command itself: its options and the list of its subcommands."""

from typing import Annotated

import typer

import vlmamba
from vlmamba.cli.ask import HELP as ASK_HELP
from vlmamba.cli.ask import AskCommand, ask
from vlmamba.cli.chat import HELP as CHAT_HELP
from vlmamba.cli.chat import chat
from vlmamba.cli.convert import HELP as CONVERT_HELP
from vlmamba.cli.convert import convert
from vlmamba.cli.env import env
from vlmamba.cli.errors import OneLineErrors
from vlmamba.cli.scans import HELP as SCANS_HELP
from vlmamba.cli.scans import scans
from vlmamba.cli.serve_demo import HELP as SERVE_DEMO_HELP
from vlmamba.cli.serve_demo import serve_demo

HELP = """Vision Mamba: ask a model about pictures, on any machine.

[bold]Examples[/]
  [green]vlmamba ask photo.png "What is this?"[/]    one answer
  [green]vlmamba chat photo.png[/]                   a conversation
  [green]vlmamba serve-demo[/]                       a web page for conversations
  [green]vlmamba convert vim vim.pth out[/]          an official checkpoint to a model folder
  [green]vlmamba env[/]                              versions, devices and kernels
  [green]vlmamba scans[/]                            orders in which an image is read

Without [cyan]--model[/] the small model inside the package answers. Nothing is downloaded.
"""

app = typer.Typer(
    cls=OneLineErrors,
    help=HELP,
    rich_markup_mode="rich",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=AskCommand, help=ASK_HELP)(ask)
app.command(help=CHAT_HELP)(chat)
app.command(help=SERVE_DEMO_HELP)(serve_demo)
app.command(help=CONVERT_HELP)(convert)
app.command()(env)
app.command(help=SCANS_HELP)(scans)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlmamba {vlmamba.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave."),
    ] = False,
) -> None:
    """Without a subcommand: show the help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


if __name__ == "__main__":
    app()
