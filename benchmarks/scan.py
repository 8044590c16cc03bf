# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks scan`: the selective scan against every peer, forward and training, time and memory."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks import agreement, memory, report, roofline
from benchmarks.options import Options
from benchmarks.peers import mambapy, ours, plain, transformers_scan
from benchmarks.peers.scan_job import ScanJob, in_path_order
from benchmarks.shapes import ScanShape
from benchmarks.timing import interleave, ratios, spread, threads

MODES = ("forward", "training")
# an autograd graph of L slices of a (B, D, L, N) tensor adds L gradients of its full size
QUADRATIC_LIMIT = 40e9


class Provider(NamedTuple):
    """Who computes a scan, and what keeps it from a shape or a mode."""

    job: Callable[[ScanShape], ScanJob]
    needs: Callable[[ScanShape, str], str] = lambda shape, mode: ""


def _quadratic(shape: ScanShape, mode: str) -> str:
    numbers = shape.elements * shape.states * shape.length
    if mode == "training" and numbers > QUADRATIC_LIMIT:
        return f"its training is quadratic in L: {numbers:.0e} additions of gradients, many minutes a step"
    return ""


def _channels_first(scan: Callable[..., torch.Tensor]) -> Callable[[ScanShape], ScanJob]:
    return partial(in_path_order, scan=scan, channels_first=True)


PROVIDERS = {
    "native": Provider(partial(ours.in_place, backend="native")),
    "torch": Provider(partial(ours.in_place, backend="torch")),
    "native, gathered": Provider(
        partial(ours.gathered, backend="native"), lambda shape, _: "" if shape.order else "one direction"
    ),
    "transformers": Provider(_channels_first(transformers_scan.sequential), _quadratic),
    "plain reference": Provider(_channels_first(plain.scan), _quadratic),
    "mambapy": Provider(
        partial(in_path_order, scan=mambapy.scan, channels_first=False), lambda shape, mode: mambapy.reason()
    ),
}
COMPILED = {"associative scan, compiled": Provider(_channels_first(transformers_scan.associative))}
# whose times the others are divided by
SUBJECTS = ("native", "torch")
MEMORY_PROVIDERS = ("native", "torch", "transformers", "mambapy")


def run(
    shapes: Iterable[ScanShape],
    modes: Iterable[str],
    compiled: bool,
    options: Options,
) -> dict[str, Any]:
    """Everything that goes into the JSON file.

    Args:
        shapes, modes: what is measured; a result for each combination and number of threads.
        compiled: also the peer that needs torch.compile.
        options: how it is measured.
    """
    slot = roofline.slot_seconds()
    results, peaks = [], []
    for shape in shapes:
        for mode in modes:
            with report.console.status(f"{shape.name} {mode}"):
                found = _measure(shape, mode, compiled, options, slot)
                results += found
                if options.memory:
                    peaks.append(_memory(shape, mode))
            show(found, peaks[-1] if options.memory else None)
    return {"slot_nanoseconds": None if slot is None else slot * 1e9, "results": results, "memory": peaks}


def _measure(shape, mode, compiled, options, slot) -> list[dict[str, Any]]:
    calls, errors, skipped = prepare(shape, mode, compiled, options.check)
    results = []
    for count in options.threads:
        with threads(count):
            samples = {name: sample.of(count) for name, sample in interleave(calls, options).items()}
        results.append(
            {
                "shape": asdict(shape),
                "description": shape.description,
                "mode": mode,
                "threads": count,
                "clock": "process CPU time" if count == 1 else "wall",
                "elements": shape.elements,
                "seconds": samples,
                "ns_per_element": {
                    name: {key: 1e9 * value / shape.elements for key, value in spread(values).items()}
                    for name, values in samples.items()
                },
                "ratios": ratios(samples, SUBJECTS),
                "errors": errors,
                "skipped": skipped,
                "roofline": _roofline(shape, mode, count, samples, slot),
            }
        )
    return results


def _roofline(shape, mode, count, samples, slot) -> dict[str, float] | None:
    if mode != "forward" or count != 1 or slot is None or shape.states < 16 or "native" not in samples:
        return None
    floor = roofline.floor_nanoseconds(shape.states, slot)
    measured = 1e9 * spread(samples["native"])["median"] / shape.elements
    return {"floor_ns_per_element": floor, "share": floor / measured}


def prepare(
    shape: ScanShape, mode: str, compiled: bool, check: bool
) -> tuple[dict[str, Callable[[], object]], dict[str, float], dict[str, str]]:
    """Calls to time by provider, their differences from the first one, and who is left out and why."""
    calls, errors, skipped = {}, {}, {}
    expected = None
    for name, provider in (PROVIDERS | (COMPILED if compiled else {})).items():
        if why := provider.needs(shape, mode):
            skipped[name] = why
            continue
        try:
            job = provider.job(shape)
            call = call_of(shape, job, mode)
            if not check:
                calls[name] = call
                continue
            found = call()
        except (ValueError, RuntimeError) as error:
            skipped[name] = str(error).splitlines()[0]
            continue
        expected = expected or found
        errors[name], why = _compare(found, expected, job)
        if why:
            skipped[name] = why
        else:
            calls[name] = call
    return calls, errors, skipped


def call_of(shape: ScanShape, job: ScanJob, mode: str) -> Callable[[], dict[str, torch.Tensor]]:
    """What is timed: y, in training also the gradients of every operand."""
    if mode == "forward":
        return lambda: {"y": job.forward()}
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(shape.batch, shape.length, shape.channels, generator=generator)
    dy = job.layout("y", dy)
    return lambda: job.training(dy)


def _compare(found, expected, job: ScanJob) -> tuple[float, str]:
    """The largest difference, and which tensor is beyond its tolerance, if one is."""
    worst, why = 0.0, ""
    for name, value in found.items():
        error = agreement.difference(value, job.layout(name, expected[name]))
        if error > (agreement.VALUE if name == "y" else agreement.GRADIENT):
            why = why or f"no ratio: {'y' if name == 'y' else f'the gradient of {name}'} differs by {error:.1e}"
        worst = max(worst, error)
    return worst, why


def memory_job(shape: dict[str, Any], mode: str, provider: str) -> tuple[Callable, Callable]:
    """For `benchmarks.memory`: a scan of a few rows, and the scan of `shape`."""
    torch.set_num_threads(1)
    large = ScanShape(**shape)
    grid = None if large.grid is None else (1, 8)
    small = ScanShape(**shape | {"batch": 1, "length": 8, "channels": 32, "grid": grid})
    return tuple(call_of(each, PROVIDERS[provider].job(each), mode) for each in (small, large))


def _memory(shape: ScanShape, mode: str) -> dict[str, Any]:
    peaks, skipped = {}, {}
    for name in MEMORY_PROVIDERS:
        why = memory.reason() or PROVIDERS[name].needs(shape, mode)
        if not why:
            try:
                peaks[name] = memory.peak("benchmarks.scan:memory_job", shape=asdict(shape), mode=mode, provider=name)
            except RuntimeError as error:
                why = str(error)
        if why:
            skipped[name] = why
    inputs = sum(value.nbytes for value in shape.inputs().values())
    output = 4 * shape.batch * shape.length * shape.channels
    return {
        "shape": shape.name,
        "mode": mode,
        "inputs": inputs,
        "output": output,
        "extra_peak": peaks,
        "skipped": skipped,
    }


def show(results: list[dict[str, Any]], peaks: dict[str, Any] | None) -> None:
    """One table: a row for each number of threads and provider."""
    first = results[0]
    subjects = list(first["ratios"])
    rows = []
    for result in results:
        clock = f"{result['threads']}, {'CPU' if result['threads'] == 1 else 'wall'}"
        for name, cell in result["ns_per_element"].items():
            against = [report.times(result["ratios"][subject].get(name)) for subject in subjects]
            extra = report.megabytes((peaks or {}).get("extra_peak", {}).get(name))
            rows.append([clock, name, report.short(cell["median"]), *against, extra])
    columns = ["threads", "provider", "ns/element", *(f"to {subject}" for subject in subjects), "extra peak"]
    report.table(f"{first['shape']['name']} {first['mode']}: {first['description']}", columns, rows, left=2)
    for name, why in first["skipped"].items():
        report.note(f"{name}: {why}")
    if first["roofline"]:
        floor, share = first["roofline"]["floor_ns_per_element"], first["roofline"]["share"]
        report.console.print(f"native reaches {share:.0%} of the multiply-add roofline ({floor:.2f} ns/element)")


def draw(figure: Any, content: dict[str, Any]) -> None:
    """Bars: how many times longer than our fastest backend, one panel for each mode."""
    results = content["results"]
    chosen = [r for r in results if r["threads"] == results[0]["threads"] and r["ratios"]]
    modes = sorted({r["mode"] for r in chosen})
    for axes, mode in zip(figure.subplots(1, max(1, len(modes)), squeeze=False)[0], modes, strict=False):
        of_mode = [r for r in chosen if r["mode"] == mode]
        subject = next(iter(of_mode[0]["ratios"]))
        groups, values = [r["shape"]["name"] for r in of_mode], [r["ratios"][subject] for r in of_mode]
        report.draw_bars(axes, f"{mode}: time / {subject}'s", groups, values)
