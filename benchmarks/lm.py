# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks lm`: whole language models, reading a prompt and writing on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import agreement, memory, report
from benchmarks.options import Options
from benchmarks.peers.language_models import LANGUAGE_MODELS, LanguageModel, random_weights
from benchmarks.timing import interleave, ratios, spread, threads

DEFINITION = "transformers float32"
SUBJECTS = ("vlmamba float32", "vlmamba bfloat16", "vlmamba int8")
MEMORY_MODELS = ("vlmamba float32", "vlmamba bfloat16", "transformers float32")
CHECKED_TOKENS = 64
DECODED_TOKENS = 16


def run(sizes: dict[str, int], prompts: list[int], options: Options) -> dict[str, Any]:
    """Everything that goes into the JSON file.

    Args:
        sizes: of `transformers.MambaConfig`.
        prompts: lengths; decoding is measured after the last.
        options: how it is measured.
    """
    with report.console.status("loading the models"):
        models, skipped = _load(sizes)
        ids = torch.randint(
            sizes["vocab_size"], (prompts[-1] + 1,), generator=torch.Generator().manual_seed(2)
        ).tolist()
        errors = _check(models, ids[: min(CHECKED_TOKENS, len(ids))], skipped) if options.check else {}
    results = []
    for count in options.threads:
        with threads(count):
            for model in models.values():
                model.set_threads(count)
            for task, tokens, calls in _tasks(models, prompts, ids, skipped):
                with report.console.status(f"{task}, {count} thread(s)"):
                    samples = {name: sample.of(count) for name, sample in interleave(calls, options).items()}
                results.append(_result(task, tokens, count, samples))
                show(results[-1])
    for name, why in skipped.items():
        report.note(f"{name}: {why}")
    peaks = _memory(sizes, prompts[-1]) if options.memory else {}
    return {"sizes": sizes, "errors": errors, "skipped": skipped, "results": results, "memory": peaks}


def _load(sizes: dict[str, int]) -> tuple[dict[str, LanguageModel], dict[str, str]]:
    config, weights = random_weights(sizes)
    models, skipped = {}, {}
    for name, (load, why) in LANGUAGE_MODELS.items():
        if reason := why():
            skipped[name] = reason
        else:
            models[name] = load(config, weights)
    return models, skipped


def _check(models: dict[str, LanguageModel], ids: list[int], skipped: dict[str, str]) -> dict[str, dict[str, float]]:
    """Difference from transformers' float32 logits: of a prompt read at once, and with its last token as a step."""
    expected = torch.as_tensor(models[DEFINITION].prefill(ids))
    errors = {}
    for name, model in models.items():
        low = not name.endswith("float32")
        measure, limit = (
            (agreement.rms_difference, agreement.LOW_PRECISION) if low else (agreement.difference, agreement.MODEL)
        )
        found = {"prefill": model.prefill(ids)}
        model.prefill(ids[:-1])
        found["decode"] = model.step(ids[-1])
        errors[name] = {task: measure(torch.as_tensor(logits), expected) for task, logits in found.items()}
        for task, error in errors[name].items():
            if error > limit:
                skipped[f"{name}, {task}"] = f"no ratio: its logits differ by {error:.1e}"
    return errors


def _tasks(models, prompts, ids, skipped) -> list[tuple[str, int, dict[str, Callable[[], object]]]]:
    """(task, tokens a call, calls by model), without those whose results differ."""
    agreeing = {
        task: {name: model for name, model in models.items() if f"{name}, {task}" not in skipped}
        for task in ("prefill", "decode")
    }
    tasks = [
        (f"prefill {length}", length, {n: partial(m.prefill, ids[:length]) for n, m in agreeing["prefill"].items()})
        for length in prompts
    ]
    decoded = {name: partial(_decode, model, ids[:DECODED_TOKENS]) for name, model in agreeing["decode"].items()}
    return [*tasks, (f"decode after {prompts[-1]}", min(DECODED_TOKENS, len(ids)), decoded)]


def _decode(model: LanguageModel, tokens: list[int]) -> None:
    for token in tokens:
        model.step(token)


def _result(task: str, tokens: int, count: int, samples: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "task": task,
        "threads": count,
        "clock": "process CPU time" if count == 1 else "wall",
        "tokens": tokens,
        "seconds": samples,
        "tokens_per_second": {name: tokens / spread(values)["median"] for name, values in samples.items()},
        "ratios": ratios(samples, SUBJECTS),
    }


def memory_job(sizes: dict[str, int], length: int, model: str) -> tuple[Callable, Callable]:
    """For `benchmarks.memory`: a prompt of a few tokens, and one of `length`."""
    torch.set_num_threads(1)
    loaded = LANGUAGE_MODELS[model][0](*random_weights(sizes))
    return tuple(partial(loaded.prefill, [1] * tokens) for tokens in (8, length))


def _memory(sizes: dict[str, int], length: int) -> dict[str, Any]:
    if why := memory.reason():
        return {"skipped": why}
    with report.console.status("peak memory"):
        peaks = {
            name: memory.peak("benchmarks.lm:memory_job", sizes=sizes, length=length, model=name)
            for name in MEMORY_MODELS
        }
    rows = [[name, report.megabytes(value)] for name, value in peaks.items()]
    report.table(f"prefill {length}: extra peak beyond the weights", ["model", "extra peak"], rows)
    return {"task": f"prefill {length}", "extra_peak": peaks}


def show(result: dict[str, Any]) -> None:
    """One table: a row for each model."""
    subjects = list(result["ratios"])
    rows = []
    for name, speed in result["tokens_per_second"].items():
        against = [report.times(result["ratios"][subject].get(name)) for subject in subjects]
        rows.append([name, report.short(speed), *against])
    columns = ["model", "tokens/s", *(f"to {subject.removeprefix('vlmamba ')}" for subject in subjects)]
    clock = "CPU time" if result["threads"] == 1 else "wall"
    report.table(f"{result['task']}: {result['threads']} thread(s), {clock}", columns, rows)


def draw(figure: Any, content: dict[str, Any]) -> None:
    """Bars: how many times longer than ours in float32, by task, at the first number of threads."""
    results = content["results"]
    chosen = [r for r in results if r["threads"] == results[0]["threads"] and SUBJECTS[0] in r["ratios"]]
    report.draw_bars(
        figure.subplots(),
        f"time / {SUBJECTS[0]}'s",
        [r["task"] for r in chosen],
        [r["ratios"][SUBJECTS[0]] for r in chosen],
    )
