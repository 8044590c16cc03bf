# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks scan --length-curve`: time and memory per row must not grow with the number of rows.

Freed memory is kept for the next call, for everybody: otherwise the operating system's price of fresh pages, not the
scan, decides about the long ones.
"""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from benchmarks import memory, report, scan
from benchmarks.options import Options
from benchmarks.shapes import ScanShape
from benchmarks.timing import interleave, spread, threads

# a peer stops where its (B, D, L, N) tensors, of which it holds about three, pass this
PEER_BYTES = 3e9


def run(shape: ScanShape, lengths: list[int], modes: Iterable[str], options: Options) -> dict[str, Any]:
    """Seconds and extra peak memory by length, of our fastest backend and of transformers as far as it goes."""
    memory.keep_freed_memory()
    ours = next(name for name in scan.SUBJECTS if name in scan.prepare(shape, "forward", False, True)[0])
    results = []
    for mode in modes:
        for length in lengths:
            with report.console.status(f"{mode} {length}"):
                results.append(_point(replace(shape, length=length), ours, mode, options))
    show(results)
    return {"subject": ours, "results": results}


def _point(shape, ours, mode, options) -> dict[str, Any]:
    names = [ours]
    if mode == "forward" and 4 * 3 * shape.elements * shape.states <= PEER_BYTES:
        names.append("transformers")
    calls = {name: scan.call_of(shape, scan.PROVIDERS[name].job(shape), mode) for name in names}
    count = options.threads[0]
    with threads(count):
        samples = {name: sample.of(count) for name, sample in interleave(calls, options).items()}
    del calls
    peaks = {}
    if options.memory and not memory.reason():
        arguments = {"shape": asdict(shape), "mode": mode}
        peaks = {name: memory.peak("benchmarks.scan:memory_job", provider=name, **arguments) for name in names}
    return {
        "length": shape.length,
        "mode": mode,
        "threads": count,
        "elements": shape.elements,
        "seconds": samples,
        "microseconds_per_row": {n: 1e6 * spread(values)["median"] / shape.length for n, values in samples.items()},
        "extra_peak": peaks,
        "bytes_per_row": {name: value / shape.length for name, value in peaks.items()},
    }


def show(results: list[dict[str, Any]]) -> None:
    """One line for each length and mode."""
    names = list(dict.fromkeys(name for result in results for name in result["seconds"]))
    columns = ["mode", "rows", *(f"{n}\nus/row" for n in names), *(f"{n}\nkB/row" for n in names)]
    rows = []
    for result in results:
        us = [result["microseconds_per_row"].get(name) for name in names]
        kilobytes = [result["bytes_per_row"].get(name) for name in names]
        cells = [*us, *(None if value is None else value / 1e3 for value in kilobytes)]
        words = [result["mode"], str(result["length"])]
        rows.append(words + ["-" if cell is None else report.short(cell) for cell in cells])
    report.table("cost over the length", columns, rows)


def draw(figure: Any, content: dict[str, Any]) -> None:
    """Two panels: microseconds and kilobytes for each row, over the rows."""
    results = content["results"]
    left, right = figure.subplots(1, 2)
    panels = (
        (left, "microseconds_per_row", 1, "us per row"),
        (right, "bytes_per_row", 1e-3, "kB of extra peak per row"),
    )
    for axes, key, scale, label in panels:
        lines = {}
        for result in results:
            for name, value in result[key].items():
                lines.setdefault(f"{name}, {result['mode']}", []).append((result["length"], scale * value))
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.grid(True, which="both", alpha=0.3)
        if lines:
            axes.legend(fontsize=7)
