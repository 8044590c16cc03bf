# SPDX-License-Identifier: Apache-2.0
"""`vlmamba convert`: an official checkpoint to a folder that `from_pretrained` takes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vlmamba.cli.errors import CommandError
from vlmamba.cli.terminal import status

HELP = """Turn an official checkpoint into a model folder.

Only tensors and plain data are read: a checkpoint that holds code is refused.
Which published model it is, is found by the weights' shapes; say [cyan]--preset[/] or
[cyan]--arguments[/] where that is not enough. The folder gets the weights
(safetensors), config, class names of ImageNet and the published
preprocessing, and works with [cyan]import vlmamba[/] and
[cyan]pipeline("image-classification", model=FOLDER)[/].

A Cobra checkpoint holds neither its vision encoders nor a tokenizer: both are
fetched, or given with [cyan]--vision[/] and [cyan]--tokenizer[/].
[cyan]vlmamba ask --model FOLDER[/] then answers with it.

[bold]Examples[/]
  [green]vlmamba convert vmamba vssm1_tiny_0230s.pth vmamba-tiny[/]
  [green]vlmamba convert vim vim.pth out --arguments '{"embed_dim": 192}'[/]
  [green]vlmamba convert vmamba upernet.pth out --task backbone --preset tiny[/]
  [green]vlmamba convert vim --list[/]    published models of a family
  [green]vlmamba convert cobra latest-checkpoint.pt out --preset cobra-3b[/]
  [green]vlmamba convert cobra latest-checkpoint.pt out --arguments config.json
    --vision dinov2.safetensors --vision siglip.safetensors
    --tokenizer tokenizer.json[/]
"""


def convert(
    family: Annotated[
        str, typer.Argument(help="Family of the model: vim, vmamba, mamba, cobra, ...", show_default=False)
    ],
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Official file: .pth, .pt, .bin or .safetensors.", show_default=False)
    ] = None,
    out_dir: Annotated[Path | None, typer.Argument(help="Folder to write.", show_default=False)] = None,
    preset: Annotated[str | None, typer.Option(help="Name of the published model.")] = None,
    arguments: Annotated[
        str | None, typer.Option(help="Official constructor's arguments: a JSON object or a file that holds one.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of encoders: image-classification (default) or backbone.")] = None,
    weights: Annotated[str | None, typer.Option(help="Key of the weights in the file, e.g. model_ema.")] = None,
    vision: Annotated[
        list[Path] | None,
        typer.Option(help="cobra: file with timm's weights of an encoder; once for each, in any order."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="cobra: GPT-NeoX's tokenizer.json, or a folder that has it.")
    ] = None,
    show_presets: Annotated[bool, typer.Option("--list", help="List the published models of the family.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Turn an official checkpoint into a model folder."""
    from transformers.utils import logging

    from vlmamba.convert import convert_checkpoint, list_presets

    logging.disable_progress_bar()  # what takes a while is said below
    try:
        presets = list_presets(family)
        if show_presets:
            typer.echo("\n".join(presets) or f"{family} lists no published models: give --arguments")
            return
        if checkpoint is None or out_dir is None:
            missing = "CHECKPOINT" if checkpoint is None else "OUT_DIR"
            raise CommandError(f"argument {missing} is missing; expected FAMILY CHECKPOINT OUT_DIR")
        if preset is not None and arguments is not None:
            raise CommandError("--preset and --arguments are both given, expected one of them")
        _check_folder(out_dir, overwrite)
        with status(f"converting {checkpoint.name}"):
            chosen = preset if arguments is None else _json_object(arguments)
            model = convert_checkpoint(family, checkpoint, out_dir, chosen, task, weights, vision or (), tokenizer)
    except ValueError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"argument OUT_DIR: '{out_dir}' cannot be written ({error.strerror or error})") from error
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    typer.echo(f"{type(model).__name__}, {millions:.1f} M parameters -> {out_dir}")


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.is_file():
        raise CommandError(f"argument OUT_DIR: '{folder}' is a file, expected a folder to write")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise CommandError(f"argument OUT_DIR: '{folder}' is not empty; expected a new folder, or --overwrite")


def _json_object(text: str) -> dict:
    source = text
    if not text.lstrip().startswith("{"):
        if not Path(text).is_file():
            raise CommandError(f"--arguments: {text!r} is neither a JSON object nor a file")
        source = Path(text).read_text(encoding="utf-8")
    try:
        found = json.loads(source)
    except ValueError as error:
        raise CommandError(f"--arguments: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise CommandError(f"--arguments: a JSON {type(found).__name__}, expected an object")
    return found
