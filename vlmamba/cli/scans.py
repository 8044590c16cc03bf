# SPDX-License-Identifier: Apache-2.0
"""`vlmamba scans`: in which order an image can be read."""

import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vlmamba.cli.errors import CommandError

if TYPE_CHECKING:
    import numpy as np

    from vlmamba.scans import Locality, Scan

HELP = """Show the scan orders: in which order an image is read.

Without NAME all are listed. With it, every order is written as a grid
of step numbers, with how well it keeps neighbours together. NAME may
also be one order of a scan, or several scans.

[bold]Examples[/]
  [green]vlmamba scans[/]                                  all of them
  [green]vlmamba scans hilbert --size 6x8[/]               height x width
  [green]vlmamba scans vivim3 --size 2x3x4[/]              frames x height x width
  [green]vlmamba scans cross_scan --out cross.png[/]       a picture of every order
  [green]vlmamba scans "zigma8[3]+local_w5" --json[/]      for programs
"""
SIDE = 8
VIDEO = (3, 4, 4)
MOST_POSITIONS = 512 * 512
MOST_DRAWN = 128 * 128
NO_LIMIT = 100_000
FORMATS = (".png", ".svg", ".pdf")


def scans(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of the listed names.", show_default=False)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Of the grid; TxHxW for a video.", show_default="8x8 or 3x4x4"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the orders into a .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the scans, show or draw one; see `HELP`."""
    if name is None:
        if size is not None or out is not None:
            raise CommandError(f"{'--size' if size is not None else '--out'}: expected together with a NAME")
        _list(as_json)
        return
    scan = _find(name)
    grid = _grid(scan, size)
    if out is not None:
        _draw(scan, grid, out)
    if as_json:
        typer.echo(json.dumps(_described(scan, grid, out)))
    elif out is None:
        _show(scan, grid)
    else:
        typer.echo(f"{out}: {scan.name} on {_by(grid)}")


def _list(as_json: bool) -> None:
    from vlmamba.scans import get_scan, list_scans

    found = [get_scan(name) for name in list_scans()]
    if as_json:
        fields = ("name", "num_paths", "kind", "description")
        typer.echo(json.dumps([{field: getattr(scan, field) for field in fields} for scan in found]))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", no_wrap=True, style="cyan")
    table.add_column("orders", justify="right")
    table.add_column("kind")
    table.add_column("description")
    for scan in found:
        table.add_row(scan.name, str(scan.num_paths), scan.kind, scan.description)
    _console().print(table)


def _console() -> Console:
    """As wide as the terminal; where there is none, no line is broken."""
    return Console(file=sys.stdout, highlight=False, markup=False, width=None if sys.stdout.isatty() else NO_LIMIT)


def _find(name: str) -> "Scan":
    from vlmamba.scans import get_scan

    try:
        return get_scan(name)
    except ValueError as error:
        # the names that there are would fill the screen
        reason = re.sub("; expected one of .*", "; `vlmamba scans` lists all", str(error))
        raise CommandError(f"argument NAME: {reason.removeprefix('get_scan: ')}") from error


def _grid(scan: "Scan", size: str | None) -> tuple[int, ...]:
    sides, example = (3, "2x3x4") if scan.kind == "video" else (2, "6x8")
    if size is None:
        return VIDEO if sides == 3 else (SIDE, SIDE)
    numbers = size.lower().split("x")
    if len(numbers) != sides or not all(re.fullmatch("[1-9][0-9]{0,5}", number) for number in numbers):
        what = "frames x height x width" if sides == 3 else "height x width"
        raise CommandError(f"--size {size!r}: expected {what}, each 1 or more, such as {example}")
    grid = tuple(map(int, numbers))
    if math.prod(grid) > MOST_POSITIONS:
        raise CommandError(f"--size {size!r}: {math.prod(grid)} positions, expected at most {MOST_POSITIONS}")
    return grid


def _by(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))


def _draw(scan: "Scan", grid: tuple[int, ...], out: Path) -> None:
    from vlmamba.scans.picture import save

    if math.prod(grid) > MOST_DRAWN:
        raise CommandError(f"--size '{_by(grid)}': {math.prod(grid)} positions, expected at most {MOST_DRAWN} to draw")
    if out.suffix.lower() not in FORMATS:
        raise CommandError(f"--out '{out}': expected a file name that ends in {', '.join(FORMATS)}")
    try:
        save(scan, grid, out)
    except OSError as error:
        raise CommandError(f"--out '{out}': it cannot be written ({error.strerror or error})") from error


def _described(scan: "Scan", grid: tuple[int, ...], out: Path | None) -> dict:
    from dataclasses import asdict

    return {
        "name": scan.name,
        "kind": scan.kind,
        "description": scan.description,
        "size": grid,
        "rows": scan.num_rows(*grid),
        "paths": scan.paths(*grid).tolist(),
        "locality": [facts and asdict(facts) for facts in _localities(scan, grid)],
        "picture": out and str(out),
    }


def _localities(scan: "Scan", grid: tuple[int, ...]) -> "list[Locality | None]":
    """Of every order that visits rows of the whole grid once."""
    from vlmamba.scans import locality

    if scan.kind in ("labels", "scales", "repeats"):
        return [None] * scan.num_paths
    return [locality(order, grid) for order in scan.paths(*grid)]


def _show(scan: "Scan", grid: tuple[int, ...]) -> None:
    from vlmamba.scans.base import orders

    console = _console()
    console.print(f"{scan.name}, {_by(grid)}: {scan.description}")
    if scan.kind == "tokens":
        console.print("The numbers below each grid are the extra tokens.")
    for index, (order, facts) in enumerate(zip(orders(scan, *grid), _localities(scan, grid), strict=True)):
        console.print(f"\norder {index}", style="bold")
        if scan.kind == "labels":
            console.print(" ".join(map(str, order)))
            continue
        lines = _step_numbers(scan, grid, index, order)
        if max(map(len, lines)) <= console.width:
            console.print("\n".join(lines), soft_wrap=True)
        else:
            console.print(f"(too wide for {console.width} columns: draw it with --out FILE)")
        if skipped := int((order < 0).sum()):
            console.print(f"{skipped} of {len(order)} steps are padded")
        if facts is not None:
            console.print(_sentence(facts))


def _step_numbers(scan: "Scan", grid: tuple[int, ...], index: int, order: "np.ndarray") -> list[str]:
    """The grid with the steps at which each row is visited; "." where it is not."""
    from vlmamba.scans.picture import GAP, places

    where = places(scan, grid, index)
    cells = [""] * len(where)
    for step, row in enumerate(order):
        if row >= 0:
            cells[row] += f"/{step}" if cells[row] else str(step)
    cells = [cell or "." for cell in cells]
    size = max(map(len, cells)) + 1
    lines: dict[float, str] = {}
    for (x, y), cell in sorted(zip(where.tolist(), cells, strict=True), key=lambda item: item[0][::-1]):
        # a gap between frames is as wide as a step number
        lines[y] = lines.get(y, "").ljust(round(x / GAP) * size) + cell.rjust(size)
    return list(lines.values())


def _sentence(facts: "Locality") -> str:
    return (
        f"jumps: {facts.jumps}; longest step: {facts.largest_step}; neighbours are read "
        f"{facts.mean_distance:.1f} steps apart on average, {facts.largest_distance} at most"
    )
