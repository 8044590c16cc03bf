# SPDX-License-Identifier: Apache-2.0
"""Options that several subcommands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vlmamba.cli.errors import CommandError


def _count(option: str) -> Callable[[object], int]:
    def count(text: object) -> int:
        try:
            number = int(str(text))
        except ValueError:
            number = 0
        if number < 1:
            raise CommandError(f"{option} {str(text)!r}: expected a whole number, 1 or more")
        return number

    return count


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
MaxNewTokens = Annotated[
    int,
    typer.Option(metavar="N", parser=_count("--max-new-tokens"), help="Longest answer, in tokens; 1 or more."),
]
Tiles = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=_count("--tiles"),
        help="Show a large picture also in parts, N at most; 1 for none.",
        show_default="as the model's folder says",
    ),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=_count("--max-context"),
        help="Longest prompt, in tokens, those of pictures among them; longer ones are refused.",
        show_default="any length",
    ),
]
