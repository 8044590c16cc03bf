# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks tiles`: an image in ever more tiles, read by our VLM and by a transformer LLaVA of its size.

The time to the first token and the part of it that encoder and connector take, the time of a token after it, the peak
of memory, the size of the state or KV cache. The models differ in what they compute, so times are compared, not
results.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

import vlmamba
from benchmarks import memory, report
from benchmarks.options import Options
from benchmarks.peers.vlms import PLACEHOLDER, VLMS, Vlm, cache_bytes
from benchmarks.shapes import VlmSizes
from benchmarks.timing import interleave, ratio, spread, threads

OURS, PEER = VLMS
TASKS = ("encode", "prefill", "decode")
QUESTION_TOKENS = 32
DECODED_TOKENS = 8
PIECE = 512
IN_PIECES = f"vlmamba, {PIECE} tokens at a time"
STYLES = {OURS: {"color": "C0"}, PEER: {"color": "black"}, IN_PIECES: {"color": "C0", "linestyle": "--"}}
FEW_ROUNDS, MANY_TILES = 3, 16


def run(sizes: VlmSizes, counts: tuple[int, ...], options: Options) -> dict[str, Any]:
    """Everything that goes into the JSON file.

    Args:
        sizes: of both models.
        counts: numbers of tiles, one image a call.
        options: how it is measured; at one number of threads. From 16 tiles on there are three rounds, and none to warm
            up.
    """
    with report.console.status("making the models"):
        models = {name: _model(name, sizes) for name in VLMS}
    results = []
    for tiles in counts:
        rounds = min(options.rounds, FEW_ROUNDS) if tiles >= MANY_TILES else options.rounds
        with report.console.status(f"{tiles} tile(s)"):
            results.append(_measured(models, sizes, tiles, replace(options, rounds=rounds)))
        report.note(", ".join(rows(results[-1])[0]))
    return {
        "sizes": asdict(sizes),
        "question_tokens": QUESTION_TOKENS,
        "parameters": {name: sum(p.numel() for p in vlm.model.parameters()) for name, vlm in models.items()},
        "results": results,
    }


def inputs(sizes: VlmSizes, tiles: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[1, L]` and pixels `[tiles, 3, side, side]` of an image that is exactly so many tiles, and a question.

    Args:
        sizes: of the tiles.
        tiles: a power of two.
    """
    rows = 2 ** ((tiles.bit_length() - 1) // 2)
    generator = torch.Generator().manual_seed(0)
    size = (3, rows * sizes.side, tiles // rows * sizes.side)
    image = torch.randint(256, size, generator=generator, dtype=torch.uint8)
    processor = vlmamba.VLMambaImageProcessor(size={"height": sizes.side, "width": sizes.side})
    # the thumbnail is left out, so that there are as many views as tiles
    pixels = processor(image, max_patches=tiles, use_thumbnail=False, return_tensors="pt")["pixel_values"]
    question = torch.randint(PLACEHOLDER + 1, sizes.vocabulary, (QUESTION_TOKENS,), generator=generator)
    tokens = tiles * (sizes.side // sizes.vit["patch_size"]) ** 2
    return torch.cat([torch.full((tokens,), PLACEHOLDER), question])[None], pixels


def _model(name: str, sizes: VlmSizes) -> Vlm:
    torch.manual_seed(0)
    return VLMS[name](sizes)


def _measured(models: dict[str, Vlm], sizes: VlmSizes, tiles: int, options: Options) -> dict[str, Any]:
    count = options.threads[0]
    ids, pixels = inputs(sizes, tiles)
    caches = {}

    def prefill(name: str) -> None:
        # the one before is let go first
        caches.pop(name, None)
        caches[name] = models[name].prefill(ids, pixels)

    def decode(name: str) -> None:
        models[name].decode(caches[name], DECODED_TOKENS)

    does = {"encode": lambda name: models[name].encode(pixels), "prefill": prefill, "decode": decode}
    calls = {f"{task} {name}": lambda t=task, n=name: does[t](n) for task in TASKS for name in models}
    # a decode goes on from the prefill of its round
    with threads(count):
        samples = {key: sample.of(count) for key, sample in interleave(calls, options, tiles < MANY_TILES).items()}
    seconds = {task: {name: samples[f"{task} {name}"] for name in models} for task in TASKS}
    seconds["decode"] = {n: [v / DECODED_TOKENS for v in values] for n, values in seconds["decode"].items()}
    return {
        "tiles": tiles,
        "tokens": ids.shape[1],
        "threads": count,
        "clock": "process CPU time" if count == 1 else "wall",
        "seconds": seconds,
        "ratios": {task: ratio(seconds[task][PEER], seconds[task][OURS]) for task in TASKS},
        "cache_bytes": {name: cache_bytes(cache) for name, cache in caches.items()},
        "extra_peak": _peaks(sizes, tiles) if options.memory and not memory.reason() else {},
    }


def memory_job(name: str, sizes: dict[str, Any], tiles: int) -> tuple[Callable, Callable]:
    """For `benchmarks.memory`: the prefill of one tile, and of so many."""
    torch.set_num_threads(1)
    sizes = VlmSizes(**sizes)
    if name == IN_PIECES:
        prefill = partial(_model(OURS, sizes).prefill_in_pieces, size=PIECE)
    else:
        prefill = _model(name, sizes).prefill
    return tuple(partial(prefill, *inputs(sizes, n)) for n in (1, tiles))


def _peaks(sizes: VlmSizes, tiles: int) -> dict[str, int]:
    return {
        name: memory.peak("benchmarks.tiles:memory_job", name=name, sizes=asdict(sizes), tiles=tiles) for name in STYLES
    }


def _medians(result: dict[str, Any], task: str) -> list[float]:
    return [spread(result["seconds"][task][name])["median"] for name in VLMS]


def rows(result: dict[str, Any]) -> list[list[str]]:
    """One row of `COLUMNS`; ours | the peer's."""
    encode, prefill, decode = (_medians(result, task) for task in TASKS)
    language = [whole - part for whole, part in zip(prefill, encode, strict=True)]

    def pair(values: list[float], scale: float = 1.0) -> str:
        return " / ".join(report.short(value * scale) for value in values) if values else "-"

    caches, peaks = [result["cache_bytes"][name] for name in VLMS], list(result["extra_peak"].values())
    return [
        [
            f"{result['tiles']}",
            f"{result['tokens']}",
            pair(prefill),
            report.short(result["ratios"]["prefill"]["median"]),
            pair(encode),
            pair(language),
            pair(decode, 1e3),
            report.short(result["ratios"]["decode"]["median"]),
            pair(peaks, 1e-6),
            pair(caches, 1e-6),
        ]
    ]


COLUMNS = [
    "tiles",
    "tokens",
    "first token, s",
    "peer / ours",
    "of it encoder, s",
    "language model, s",
    "next token, ms",
    "peer / ours",
    "peak (and ours in pieces), MB",
    "state or KV cache, MB",
]


def show(content: dict[str, Any]) -> None:
    """One table."""
    found = [row for result in content["results"] for row in rows(result)]
    report.table(f"{OURS} / {PEER}", COLUMNS, found)


def markdown(content: dict[str, Any]) -> str:
    """The same table as a document."""
    first = content["results"][0]
    sizes = {name: f"{count / 1e6:.1f} M" for name, count in content["parameters"].items()}
    rounds = " or ".join(map(str, sorted({len(r["seconds"]["prefill"][OURS]) for r in content["results"]})))
    lines = [
        "# What tiles cost",
        "",
        f"{content['cpu']}, {content['date'][:10]}, `{content['command']}`; load {content['load'][0]} at the end.",
        "",
        f"Each cell: {OURS} ({sizes[OURS]}) / {PEER} ({sizes[PEER]}).",
        f"One image of {content['sizes']['side']}-pixel tiles and a question of {content['question_tokens']} tokens;",
        f"float32, random weights, {first['threads']} thread(s), {first['clock']}, medians of {rounds} interleaved",
        "rounds. Peak: of reading image and question, above weights and pixels; the third number is ours when",
        f"`prefill_chunk_size={PIECE}` has it read, and encode tiles, a piece at a time.",
        "",
        _line(COLUMNS),
        _line(["---:"] * len(COLUMNS)),
    ]
    lines += [_line(row) for result in content["results"] for row in rows(result)]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(figure: Any, content: dict[str, Any]) -> None:
    """Time to the first token with the encoder's part, time of the next one, peak, cache; over the tiles."""
    results = content["results"]
    counts = [result["tiles"] for result in results]
    panels = {
        "time to the first token, s": [_medians(r, "prefill") for r in results],
        "time of the next token, ms": [[1e3 * v for v in _medians(r, "decode")] for r in results],
        "peak above weights and pixels, MB": [[r["extra_peak"].get(n, 0) / 1e6 for n in STYLES] for r in results],
        "state or KV cache, MB": [[r["cache_bytes"][n] / 1e6 for n in VLMS] for r in results],
    }
    panels = {title: values for title, values in panels.items() if any(map(any, values))}
    every = list(figure.subplots(1, len(panels)))
    for axes, (title, values) in zip(every, panels.items(), strict=True):
        for (name, style), line in zip(STYLES.items(), zip(*values, strict=True), strict=False):
            axes.plot(counts, line, marker="o", markersize=4, label=name, **style)
        axes.set(title=title, xlabel="tiles", xscale="log", yscale="log")
        axes.set_xticks(counts, counts)
        axes.minorticks_off()
        axes.grid(True, alpha=0.3)
    for place, name in enumerate(VLMS):
        part, style = [_medians(r, "encode")[place] for r in results], STYLES[name] | {"linestyle": ":"}
        every[0].plot(counts, part, label=f"of it the encoder of {name.partition(':')[0]}", **style)
    figure.legend(*_legend(every), fontsize=8, ncols=5, loc="outside lower center")


def _legend(every: list[Any]) -> tuple[list[Any], list[str]]:
    """Every line once."""
    found = {}
    for axes in every:
        lines, names = axes.get_legend_handles_labels()
        found = dict(zip(names, lines, strict=True)) | found
    return list(found.values()), list(found)
