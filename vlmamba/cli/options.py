# SPDX-License-Identifier: Apache-2.0
"""Options that several subcommands share."""

from pathlib import Path
from typing import Annotated

import typer

from vlmamba.cli.errors import CommandError


def _count(text: object) -> int:
    try:
        number = int(str(text))
    except ValueError:
        number = 0
    if number < 1:
        raise CommandError(f"--max-new-tokens {str(text)!r}: expected a whole number, 1 or more")
    return number


Model = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of a VLMamba model.", show_default="the bundled model"),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ... or mps.")]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto, float32, bfloat16 or float16; auto is float32 on a CPU, elsewhere that of the weights.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(metavar="N", parser=_count, help="Longest answer, in tokens; 1 or more.")]
