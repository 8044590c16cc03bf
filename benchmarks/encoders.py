# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks encoders`: what every vision encoder costs, beside a ViT, as the image grows.

Parameters, multiply-adds, CPU time of one image, peak memory of inference and what a training forward pass keeps.
The models differ in what they compute, so their times are compared, not their results; ours must agree with themselves
on the slower `torch` backend.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import util
from typing import Any

import torch

import vlmamba
from benchmarks import agreement, costs, memory, report
from benchmarks.options import Options
from benchmarks.timing import interleave, ratios, spread, threads
from vlmamba.models import ENCODERS

PEER = "ViT-S/16 (timm)"
# peers by the name that timm has for them
PEERS = {PEER: "vit_small_patch16_224", "ViT-Ti/16 (timm)": "vit_tiny_patch16_224"}
# the smallest published model of a family, or the one of the size that others call tiny: its name and its preset
PUBLISHED = {
    "efficientvmamba": ("EfficientVMamba-T", "tiny"),
    "localvim": ("LocalVim-T", "local_vim_tiny"),
    "localvmamba": ("LocalVMamba-T", "local_vssm_tiny"),
    "mamband": ("Mamba-ND-S", "small"),
    "mambar": ("Mamba-R-T", "mambar_tiny_patch16_224"),
    "mambavision": ("MambaVision-T", "T"),
    "msvmamba": ("MSVMamba-T", "tiny"),
    "plainmamba": ("PlainMamba-L1", "L1"),
    "vim": ("Vim-T", "tiny"),
    "vmamba": ("VMamba-T", "tiny"),
}
# fields that must follow when a model is made of few layers
SHALLOW = {"mamband": {"downsample_layers": ()}}
OURS = {PUBLISHED[family][0]: family for family in ENCODERS if family in PUBLISHED}
# what is drawn, in words
MEASURES = {
    "multiply_adds": "multiply-adds, G",
    "milliseconds": "CPU time of an image, ms",
    "extra_peak": "peak of inference above the weights, MB",
    "kept": "kept for backward, MB",
}


def build(name: str, resolution: int, layers: int | None) -> torch.nn.Module:
    """A classifier for 1000 classes, by its name here.

    Args:
        name: of `OURS` or `PEERS`.
        resolution: side of the square image.
        layers: depth of each stage; None for the published model.
    """
    if name in PEERS:
        import timm

        return timm.create_model(PEERS[name], img_size=resolution, **({"depth": layers} if layers else {}))
    family = OURS[name]
    kind = getattr(vlmamba, f"{ENCODERS[family]}Config")
    fields = vlmamba.convert.list_presets(family)[PUBLISHED[family][1]]
    if layers:
        depths = getattr(kind(), "depths", None)
        fields = {"num_hidden_layers": layers} if depths is None else {"depths": [layers] * len(depths)}
        fields |= SHALLOW.get(family, {})
    config = kind(**{**fields, "image_size": resolution, "num_labels": 1000})
    return getattr(vlmamba, f"{ENCODERS[family]}ForImageClassification")(config)


def run(resolutions: list[int], layers: int | None, options: Options) -> dict[str, Any]:
    """Everything that goes into the JSON file.

    Args:
        resolutions: sides of the square image; one image a call. The larger ones get fewer rounds, but three.
        layers: depth of each stage, None for the published models.
        options: how it is measured; at one number of threads.
    """
    names = [*OURS, *(PEERS if util.find_spec("timm") else ())]
    results, disagreeing = [], {}
    for resolution in resolutions:
        rounds = min(options.rounds, max(3, options.rounds * resolutions[0] // resolution))
        with report.console.status(f"{resolution} x {resolution}"):
            models = {name: _model(name, resolution, layers) for name in names}
            if options.check and resolution == resolutions[0]:
                errors = {name: _error(models[name], resolution) for name in OURS}
                disagreeing = {n: f"backends differ by {e:.1e}" for n, e in errors.items() if e > agreement.MODEL}
            models = {name: model for name, model in models.items() if name not in disagreeing}
            results.append(_measured(models, resolution, layers, replace(options, rounds=rounds)))
    return {"layers": layers, "results": results, "skipped": disagreeing}


def _model(name: str, resolution: int, layers: int | None) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name, resolution, layers).eval()


def _image(resolution: int) -> torch.Tensor:
    return torch.randn(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))


def _call(model: torch.nn.Module, resolution: int) -> Callable[[], torch.Tensor]:
    image = _image(resolution)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        out = model(image)
        return getattr(out, "logits", out)

    return call


def _error(model: torch.nn.Module, resolution: int) -> float:
    call = _call(model, resolution)
    found = call()
    with vlmamba.ops.use_backend("torch"):
        return agreement.difference(found, call())


def _measured(models: dict[str, torch.nn.Module], resolution: int, layers: int | None, options: Options) -> dict:
    count = options.threads[0]
    calls = {name: _call(model, resolution) for name, model in models.items()}
    with threads(count):
        samples = {name: sample.of(count) for name, sample in interleave(calls, options).items()}
        kept = {name: costs.kept_for_backward(model, _image(resolution)) for name, model in models.items()}
    against = ratios(samples, [name for name in samples if name in OURS])
    return {
        "resolution": resolution,
        "threads": count,
        "clock": "process CPU time" if count == 1 else "wall",
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "multiply_adds": {
            name: costs.multiply_adds(lambda name=name: build(name, resolution, layers), resolution) for name in models
        },
        "seconds": samples,
        "milliseconds": {name: 1e3 * spread(values)["median"] for name, values in samples.items()},
        "ratios": {name: {peer: of[peer] for peer in PEERS if peer in of} for name, of in against.items()},
        "kept": kept,
        "extra_peak": _peaks(models, resolution, layers) if options.memory and not memory.reason() else {},
    }


def memory_job(name: str, resolution: int, layers: int | None) -> tuple[Callable, Callable]:
    """For `benchmarks.memory`: a small image, and one of `resolution`."""
    torch.set_num_threads(1)
    return tuple(_call(_model(name, side, layers), side) for side in (64, resolution))


def _peaks(names, resolution: int, layers: int | None) -> dict[str, int]:
    return {
        name: memory.peak("benchmarks.encoders:memory_job", name=name, resolution=resolution, layers=layers)
        for name in names
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    """A row for each model at one resolution, the cheapest first."""
    made = []
    for name in sorted(result["seconds"], key=result["milliseconds"].get):
        ratio = result["ratios"].get(name, {}).get(PEER)
        made.append(
            [
                name,
                f"{result['parameters'][name] / 1e6:.1f}",
                f"{result['multiply_adds'][name] / 1e9:.2f}",
                report.short(result["milliseconds"][name]),
                "-" if ratio is None else f"x{report.short(1 / ratio['median'])}",
                _megabytes(result["extra_peak"].get(name)),
                _megabytes(result["kept"][name]),
            ]
        )
    return made


COLUMNS = [
    "model",
    "parameters, M",
    "MACs, G",
    "ms an image",
    f"time / {PEER.partition('/')[0]}'s",
    "peak, MB",
    "kept, MB",
]


def _megabytes(value: int | None) -> str:
    return "-" if value is None else report.short(value / 1e6)


def show(content: dict[str, Any]) -> None:
    """A table for each resolution."""
    for result in content["results"]:
        title = f"{result['resolution']} x {result['resolution']} pixels, {result['threads']} thread(s)"
        report.table(title, COLUMNS, rows(result))
    for name, reason in content["skipped"].items():
        report.note(f"{name}: {reason}")


def markdown(content: dict[str, Any]) -> str:
    """The same tables as a document."""
    lines = [
        "# What the vision encoders cost",
        "",
        f"{content['cpu']}, {content['date'][:10]}, `{content['command']}`.",
        "",
        "One image, float32, random weights. MACs: half the floating-point operations of matrix products,",
        "convolutions, attention and scans (9 for every step, channel and state). Peak: of inference, above the",
        "weights. Kept: for backward by a training forward pass, the weights left out.",
    ]
    for result in content["results"]:
        side = result["resolution"]
        lines += ["", f"## {side} x {side} pixels, {result['clock']}, {result['threads']} thread(s)", ""]
        lines += [_line(COLUMNS), _line(["---", *["---:"] * (len(COLUMNS) - 1)]), *map(_line, rows(result))]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(figure: Any, content: dict[str, Any]) -> None:
    """A panel for each measure, over the side of the image."""
    results = content["results"]
    sides = [result["resolution"] for result in results]
    units = {"multiply_adds": 1e9, "milliseconds": 1, "extra_peak": 1e6, "kept": 1e6}
    measures = {measure: words for measure, words in MEASURES.items() if results[0][measure]}
    panels = list(figure.subplots(1, len(measures)))
    for axes, (measure, words) in zip(panels, measures.items(), strict=True):
        for i, name in enumerate(results[0]["seconds"]):
            values = [result[measure].get(name, float("nan")) / units[measure] for result in results]
            style = {"color": "black", "linestyle": ("-", "--")[list(PEERS).index(name)]} if name in PEERS else {}
            axes.plot(sides, values, marker="osv^Dx"[i % 6], markersize=4, label=name, **style)
        axes.set(title=words, xlabel="side of the image", xscale="log", yscale="log")
        axes.set_xticks(sides, sides)
        axes.minorticks_off()
        axes.grid(True, alpha=0.3)
    panels[0].legend(fontsize=6, ncols=2)
