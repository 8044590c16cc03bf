# SPDX-License-Identifier: Apache-2.0
"""`vlmamba serve-demo`: a web page to chat about pictures."""

import signal
import socket
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from vlmamba.cli.errors import CommandError
from vlmamba.cli.options import Device, Dtype, MaxContext, MaxNewTokens, Model, Tiles

if TYPE_CHECKING:
    from fastapi import FastAPI

HELP = """Serve a web page to chat about pictures.

Open the address it prints; Ctrl-C ends it. Answers are streamed, one at
a time, in the order of the questions. Nothing is sent to or fetched from
the internet, and uploaded pictures are deleted at the end.

Needs gradio: [cyan]pip install "vlmamba\\[demo]"[/]

[bold]Examples[/]
  [green]vlmamba serve-demo[/]
  [green]vlmamba serve-demo --model my-model --port 8000[/]
  [green]vlmamba serve-demo --host 0.0.0.0[/]   for other machines, too
"""
# seconds that open pages get when the server ends
PATIENCE = 1


def _port(text: object) -> int:
    try:
        number = int(str(text))
    except ValueError:
        number = -1
    if not 0 <= number < 2**16:
        raise CommandError(f"--port {str(text)!r}: expected a whole number from 1 to 65535, or 0 for any free port")
    return number


def serve_demo(
    model: Model = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", parser=_port, help="Where to listen; 0 for any free port.")] = 7860,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_new_tokens: MaxNewTokens = 64,
    tiles: Tiles = None,
    max_context: MaxContext = None,
) -> None:
    """Serve until Ctrl-C; see `HELP`."""
    if not find_spec("gradio"):
        raise CommandError('the page needs gradio, which is not installed; expected: pip install "vlmamba[demo]"')
    with _listen(host, port) as listener, TemporaryDirectory(prefix="vlmamba-demo-") as uploads:
        from vlmamba.cli.session import Session

        session = Session.load(model, device, dtype, tiles, max_context)

        from vlmamba.cli.demo_page import page

        _serve(page(session, max_new_tokens, uploads), listener)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes the port before a model is loaded for nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        problem = error.strerror or str(error)
        raise CommandError(f"--host {host!r} --port {port}: cannot listen there: {problem}") from error


def _serve(app: "FastAPI", listener: socket.socket) -> None:
    import uvicorn

    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=PATIENCE)
    # a polite request to end is as good as Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        typer.echo(f"The page is ready at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)")
        uvicorn.Server(config).run([listener])
    # uvicorn has ended already, and hands the signal on
    except KeyboardInterrupt:
        return
