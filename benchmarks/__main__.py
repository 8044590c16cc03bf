# SPDX-License-Identifier: Apache-2.0
"""The command: `python -m benchmarks scan|lm|vision|encoders|tiles|prefix|triton`, from the root of the repository."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import report, shapes
from benchmarks.options import Options

HELP = """How fast, and in how much memory, compared with whom.

Every candidate runs in this process, in turn (A B A B), on the same inputs,
and only after its result was compared with ours. Shown are medians, and in
brackets the smallest and the largest round: [cyan]x60[/] means that the peer takes
60 times as long. At one thread the process's CPU time is measured, which
other programs disturb least; at more threads the wall clock. All numbers go
to a JSON file, the ratios to a plot beside it.

[bold]Examples[/]
  [green]python -m benchmarks scan[/]                  four shapes, time and memory
  [green]python -m benchmarks scan --shapes a --rounds 3[/]
  [green]python -m benchmarks scan --length-curve[/]   1k to 64k rows: linear cost
  [green]python -m benchmarks lm[/]                    Mamba-130m, prefill and decoding
  [green]python -m benchmarks vision[/]                Vim-S, growing resolution
  [green]python -m benchmarks encoders[/]              every encoder: MACs, time, memory
  [green]python -m benchmarks tiles[/]                 a VLM and a LLaVA, 1 to 64 tiles
  [green]python -m benchmarks prefix[/]                questions from a state, long prompts
  [green]python -m benchmarks triton[/]                what the GPU kernels are made of

[cyan]--quick[/] runs tiny sizes in seconds, to see that all works; its numbers mean
nothing. Peers that are not installed are left out. To have them all:
[green]pip install matplotlib mambapy timm llama-cpp-python gguf[/]
"""

app = typer.Typer(
    help=HELP,
    rich_markup_mode="rich",
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Threads = Annotated[str, typer.Option("--threads", help="Numbers of threads, with commas; the first is plotted.")]
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved rounds; what takes over 4 s a call gets three.")]
Quick = Annotated[bool, typer.Option("--quick", help="Tiny sizes, for trying the command out.")]
Check = Annotated[bool, typer.Option("--check/--no-check", help="Compare results before timing; no ratio otherwise.")]
Memory = Annotated[
    bool, typer.Option("--memory/--no-memory", help="Peak memory too, each candidate in a fresh process.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for JSON and PNG.", show_default="benchmarks/results, runs/benchmarks if --quick"),
]


@app.command()
def scan(
    shape_names: Annotated[
        str, typer.Option("--shapes", help="Some of a, b, c1, c2, n8, n64, n128 (benchmarks/shapes.py).")
    ] = "",
    modes: Annotated[str, typer.Option(help="forward, training or both.")] = "forward,training",
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also transformers' associative scan; compiles for minutes.")
    ] = False,
    length_curve: Annotated[
        bool, typer.Option("--length-curve", help="Time and memory over the length instead of the shapes.")
    ] = False,
    thread_counts: Threads = "1,2",
    rounds: Rounds = 7,
    memory: Memory = True,
    check: Check = True,
    quick: Quick = False,
    out: Out = None,
) -> None:
    """The selective scan: native, torch, gathered paths, transformers, a plain loop, mambapy."""
    from benchmarks import length_curve as curve
    from benchmarks import scan as benchmark

    options = _options(thread_counts, rounds, memory, check, quick)
    modes = _some(modes, benchmark.MODES, "modes")
    if length_curve:
        content = curve.run(*shapes.length_curve(quick), modes, options)
        _finish("length", content, curve.draw, quick, out)
        return
    known = shapes.QUICK_SCANS if quick else shapes.SCANS
    chosen = [known[name] for name in _some(shape_names, known, "shapes")]
    _finish("scan", benchmark.run(chosen, modes, compiled, options), benchmark.draw, quick, out)


@app.command()
def lm(
    thread_counts: Threads = "1,2",
    rounds: Rounds = 7,
    memory: Memory = True,
    check: Check = True,
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Mamba-130m with random weights: tokens per second of ours, transformers and llama.cpp."""
    from benchmarks import lm as benchmark

    sizes, prompts = (shapes.QUICK_MAMBA, shapes.QUICK_PROMPTS) if quick else (shapes.MAMBA_130M, shapes.PROMPTS)
    options = _options(thread_counts, rounds, memory, check, quick)
    _finish("lm", benchmark.run(sizes, prompts, options), benchmark.draw, quick, out)


@app.command()
def vision(
    thread_counts: Threads = "1,2",
    rounds: Rounds = 7,
    memory: Memory = True,
    check: Check = True,
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Vim-S (and VMamba-T) against a ViT-S at growing resolution: images per second and peak memory."""
    from benchmarks import vision as benchmark

    resolutions, layers = (shapes.QUICK_RESOLUTIONS, 2) if quick else (shapes.RESOLUTIONS, None)
    options = _options(thread_counts, rounds, memory, check, quick)
    _finish("vision", benchmark.run(resolutions, layers, options), benchmark.draw, quick, out)


@app.command()
def encoders(
    sides: Annotated[str, typer.Option("--sides", help="Sides of the image, with commas.")] = "224,448,896",
    thread_count: Annotated[int, typer.Option("--threads", min=1, help="Number of threads.")] = 1,
    rounds: Rounds = 7,
    memory: Memory = True,
    check: Check = True,
    quick: Quick = False,
    out: Out = None,
) -> None:
    """A tiny model of every encoder family against ViTs: parameters, MACs, CPU time and memory."""
    from benchmarks import encoders as benchmark

    resolutions, layers = (shapes.QUICK_SIDES, 2) if quick else (sorted(_numbers(sides)), None)
    content = benchmark.run(resolutions, layers, _options(str(thread_count), rounds, memory, check, quick))
    benchmark.show(content)
    path = _finish("encoders", content, benchmark.draw, quick, out, width=16)
    path.with_suffix(".md").write_text(benchmark.markdown(json.loads(path.read_text())))


@app.command()
def tiles(
    counts: Annotated[str, typer.Option("--tiles", help="Numbers of tiles, powers of two, with commas.")] = "",
    thread_count: Annotated[int, typer.Option("--threads", min=1, help="Number of threads.")] = 1,
    rounds: Rounds = 5,
    memory: Memory = True,
    quick: Quick = False,
    out: Out = None,
) -> None:
    """A large image in 1 to 64 tiles: our VLM against a transformer LLaVA of its size, time and memory."""
    from benchmarks import tiles as benchmark

    sizes, chosen = (shapes.QUICK_VLM, shapes.QUICK_TILES) if quick else (shapes.VLM_130M, shapes.TILES)
    if counts:
        chosen = _numbers(counts)
        if any(count & (count - 1) for count in chosen):
            raise typer.BadParameter(f"--tiles {counts}: expected powers of two")
    content = benchmark.run(sizes, chosen, _options(str(thread_count), rounds, memory, False, quick))
    benchmark.show(content)
    path = _finish("tiles", content, benchmark.draw, quick, out, width=18)
    path.with_suffix(".md").write_text(benchmark.markdown(json.loads(path.read_text())))


@app.command()
def prefix(
    counts: Annotated[str, typer.Option("--questions", help="Numbers of questions, with commas.")] = "1,4,16",
    lengths: Annotated[
        str, typer.Option("--tokens", help="Lengths of prompts, with commas.")
    ] = "1024,4096,16384,65536",
    thread_count: Annotated[int, typer.Option("--threads", min=1, help="Number of threads.")] = 1,
    rounds: Rounds = 5,
    memory: Memory = True,
    check: Check = True,
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Questions about one image afresh and from a state; long prompts whole and in pieces."""
    from benchmarks import prefix as benchmark

    models, sizes = {benchmark.BUNDLED: None, benchmark.VIM_S: benchmark.VIM_S_SIZES}, shapes.VLM_130M
    asked, tokens = list(_numbers(counts)), list(_numbers(lengths))
    if quick:
        models, sizes, asked, tokens = {"tiny": shapes.QUICK_VLM}, shapes.QUICK_VLM, [1, 2], [8, 16]
    options = _options(str(thread_count), rounds, memory, check, quick)
    content = benchmark.run(models, asked, sizes, tokens, options)
    benchmark.show(content)
    path = _finish("prefix", content, benchmark.draw, quick, out, width=16)
    path.with_suffix(".md").write_text(benchmark.markdown(json.loads(path.read_text())))


@app.command()
def triton() -> None:
    """Registers, spills and instructions of the compiled GPU kernels; needs no GPU."""
    try:
        from benchmarks import triton_resources
    except ImportError as error:
        raise typer.BadParameter(f"the table of Triton's resources cannot be made here: {error}") from error
    triton_resources.main()


def _finish(name: str, content: dict, draw, quick: bool, out: Path | None, width: float = 10) -> Path:
    folder = out or (Path("runs/benchmarks") if quick else report.RESULTS)
    path = report.save(name, folder, {"benchmark": name, "quick": quick, **report.environment(), **content})
    report.plot(path.with_suffix(".png"), partial(draw, content=content), width)
    return path


def _options(thread_counts: str, rounds: int, memory: bool, check: bool, quick: bool) -> Options:
    sample = {"min_seconds": 0.0} if quick else {}
    return Options(_numbers(thread_counts), rounds, check, memory, **sample)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{text!r}, expected positive numbers with commas between them, as 1,2")
    return numbers


def _some(text: str, known, option: str) -> list[str]:
    """Names with commas between them; all of `known` when empty."""
    names = [part.strip() for part in text.split(",") if part.strip()] or list(known)
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"--{option} {', '.join(unknown)}: expected some of {', '.join(known)}")
    return names


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
