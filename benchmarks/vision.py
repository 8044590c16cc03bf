# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks vision`: image encoders at growing resolution, one image at a time.

With n patches a scan costs n, attention n squared. The models differ in what they compute, so their times are
compared, not their results; ours must agree with themselves on the slower `torch` backend.
"""

from collections.abc import Callable
from importlib import util
from typing import Any, NamedTuple

import torch

import vlmamba
from benchmarks import agreement, memory, report
from benchmarks.options import Options
from benchmarks.timing import interleave, ratios, spread, threads

PEER = "ViT-S/16 (timm)"


class Encoder(NamedTuple):
    """A classifier: `build(resolution, layers)`, all of its layers when None; whether it is ours; what it lacks."""

    build: Callable[[int, int | None], torch.nn.Module]
    is_ours: bool = True
    reason: Callable[[], str] = str


def _vim(resolution: int, layers: int | None) -> torch.nn.Module:
    config = vlmamba.VimConfig(hidden_size=384, num_hidden_layers=layers or 24, image_size=resolution, num_labels=1000)
    return vlmamba.VimForImageClassification(config)


def _vmamba(resolution: int, layers: int | None) -> torch.nn.Module:
    depths = {"depths": [layers] * 4} if layers else {}
    return vlmamba.VMambaForImageClassification(vlmamba.VMambaConfig(num_labels=1000, **depths))


def _vit(resolution: int, layers: int | None) -> torch.nn.Module:
    import timm

    return timm.create_model("vit_small_patch16_224", img_size=resolution, **({"depth": layers} if layers else {}))


def _without_timm() -> str:
    return "" if util.find_spec("timm") else "timm is not installed"


ENCODERS = {
    "Vim-S": Encoder(_vim),
    "VMamba-T": Encoder(_vmamba),
    PEER: Encoder(_vit, is_ours=False, reason=_without_timm),
}


def run(resolutions: list[int], layers: int | None, options: Options) -> dict[str, Any]:
    """Everything that goes into the JSON file.

    Args:
        resolutions: sides of the square image; one image a call.
        layers: depth of each model, None for its own.
        options: how it is measured.
    """
    skipped = {name: encoder.reason() for name, encoder in ENCODERS.items() if encoder.reason()}
    names = [name for name in ENCODERS if name not in skipped]
    results = []
    for resolution in resolutions:
        with report.console.status(f"{resolution} x {resolution}"):
            calls = {name: _call(name, resolution, layers) for name in names}
            errors = _check(calls) if options.check else {}
            disagreeing = {n: f"no ratio: backends differ by {e:.1e}" for n, e in errors.items() if e > agreement.MODEL}
            calls = {name: call for name, call in calls.items() if name not in disagreeing}
            peaks = _memory(calls, resolution, layers) if options.memory and not memory.reason() else {}
            for count in options.threads:
                with threads(count):
                    samples = {name: sample.of(count) for name, sample in interleave(calls, options).items()}
                results.append(_result(resolution, count, samples, errors, peaks, skipped | disagreeing))
    show(results)
    return {"layers": layers, "results": results}


def _call(name: str, resolution: int, layers: int | None) -> Callable[[], torch.Tensor]:
    torch.manual_seed(0)
    model = ENCODERS[name].build(resolution, layers).eval()
    image = torch.randn(1, 3, resolution, resolution)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        out = model(image)
        return getattr(out, "logits", out)

    return call


def _check(calls: dict[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """Difference between the backends, for our models."""
    errors = {}
    for name, call in calls.items():
        if ENCODERS[name].is_ours:
            found = call()
            with vlmamba.ops.use_backend("torch"):
                errors[name] = agreement.difference(found, call())
    return errors


def memory_job(name: str, resolution: int, layers: int | None) -> tuple[Callable, Callable]:
    """For `benchmarks.memory`: a small image, and one of `resolution`."""
    torch.set_num_threads(1)
    return tuple(_call(name, side, layers) for side in (32, resolution))


def _memory(names, resolution: int, layers: int | None) -> dict[str, int]:
    return {
        name: memory.peak("benchmarks.vision:memory_job", name=name, resolution=resolution, layers=layers)
        for name in names
    }


def _result(resolution, count, samples, errors, peaks, skipped) -> dict[str, Any]:
    return {
        "resolution": resolution,
        "threads": count,
        "clock": "process CPU time" if count == 1 else "wall",
        "seconds": samples,
        "images_per_second": {name: 1 / spread(values)["median"] for name, values in samples.items()},
        "ratios": ratios(samples, [name for name in samples if ENCODERS[name].is_ours]),
        "errors": errors,
        "extra_peak": peaks,
        "skipped": skipped,
    }


def show(results: list[dict[str, Any]]) -> None:
    """One table: a row for each number of threads, resolution and model."""
    rows = []
    for result in sorted(results, key=lambda r: r["threads"]):
        clock = f"{result['threads']}, {'CPU' if result['threads'] == 1 else 'wall'}"
        for name, speed in result["images_per_second"].items():
            against = report.times(result["ratios"].get(name, {}).get(PEER))
            peak = report.megabytes(result["extra_peak"].get(name))
            rows.append([clock, str(result["resolution"]), name, report.short(speed), against, peak])
    columns = ["threads", "image", "model", "images/s", f"{PEER} takes", "extra peak"]
    report.table("one image, random weights", columns, rows, left=3)
    if PEER in results[0]["skipped"]:
        report.note(f"{PEER}: {results[0]['skipped'][PEER]}")


def draw(figure: Any, content: dict[str, Any]) -> None:
    """Two panels over the resolution: the peer's time over ours, and every model's peak memory."""
    results = [r for r in content["results"] if r["threads"] == content["results"][0]["threads"]]
    left, right = figure.subplots(1, 2)
    sides = [r["resolution"] for r in results]
    for name in results[0]["ratios"]:
        against = [r["ratios"].get(name, {}).get(PEER) for r in results]
        points = [(side, ratio) for side, ratio in zip(sides, against, strict=True) if ratio]
        low = [ratio["median"] - ratio["min"] for _, ratio in points]
        high = [ratio["max"] - ratio["median"] for _, ratio in points]
        x, y = [side for side, _ in points], [ratio["median"] for _, ratio in points]
        left.errorbar(x, y, yerr=[low, high], marker="o", capsize=2, label=f"{PEER} / {name}")
    left.axhline(1, color="black", linewidth=1)
    left.set(title="time of the peer / ours", xlabel="side of the image", xticks=sides, ylim=(0, None))
    for name in results[0]["extra_peak"]:
        right.plot(sides, [r["extra_peak"].get(name, float("nan")) / 1e6 for r in results], marker="o", label=name)
    right.set(title="extra peak memory, MB", xlabel="side of the image", xticks=sides, yscale="log")
    for axes in (left, right):
        axes.grid(True, alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
