# SPDX-License-Identifier: Apache-2.0
"""What narrower weights cost: accuracy on emoji scenes, how often the answers stay, and megabytes.

    pip install "vlmamba[int8]"
    python -m eval.weights --data runs/emoji --scenes 50 --out eval/results/weights.json

The same model with its weights as float32, bfloat16, int8 by torchao (every linear layer but the head, a scale for
each output) and int8 by `vlmamba.quantize` (the language model's mixers and its head, a scale for each 64 inputs).
Accuracy and questions are those of `python -m eval.emoji`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, TorchAoConfig

import vlmamba
from benchmarks.report import environment
from eval.emoji import answers, questions, score
from vlmamba.assets import bundled_model

COLUMNS = ("scenes_test", "scenes_openmoji")


def _load(folder: Path, **options: Any) -> nn.Module:
    return AutoModelForImageTextToText.from_pretrained(folder, **options).eval()


WEIGHTS: dict[str, Callable[[Path], nn.Module]] = {
    "float32": lambda folder: _load(folder, dtype=torch.float32),
    "bfloat16": lambda folder: _load(folder, dtype=torch.bfloat16),
    "int8 (torchao)": lambda folder: _load(folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())),
    "int8 (vlmamba.quantize)": lambda folder: vlmamba.quantize(_load(folder, dtype=torch.float32)),
}


def megabytes(model: nn.Module) -> float:
    """What parameters and buffers hold, in 10^6 bytes; shared memory once."""
    held: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        # torchao's weights are a tensor subclass around two tensors
        parts = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
        for part in [getattr(tensor, name) for name in parts] or [tensor]:
            held[part.data_ptr()] = part.nbytes
    return sum(held.values()) / 1e6


def markdown(results: dict[str, dict[str, float]]) -> str:
    """The table of docs/calling.md."""
    lines = [
        "| weights | MB | unseen scenes | unseen vendor | answers as with float32 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in results.items():
        cells = [f"{100 * row[column]:.1f} %" for column in (*COLUMNS, "agreement")]
        lines.append(f"| {name} | {row['megabytes']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled_model(), help="model folder (default: bundled)")
    parser.add_argument("--data", type=Path, default=Path("runs/emoji"), help="folder of training.build_emoji")
    parser.add_argument("--scenes", type=int, default=50, help="scenes of each set (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    processor = AutoProcessor.from_pretrained(arguments.model)
    rows = {column: questions(arguments.data, column, arguments.scenes) for column in COLUMNS}
    results, first = {}, None
    for name, load in WEIGHTS.items():
        model = load(arguments.model)
        given = {c: answers(model, processor, rows[c], arguments.batch_size, f"{name} {c}") for c in COLUMNS}
        first = first or given
        same = [a == b for column in COLUMNS for a, b in zip(given[column], first[column], strict=True)]
        accuracy = {c: score(rows[c], given[c])["mean over kinds"]["accuracy"] for c in COLUMNS}
        results[name] = {"megabytes": megabytes(model), **accuracy, "agreement": sum(same) / len(same)}
    print(markdown(results))
    if arguments.out:
        counts = {column: len(found) for column, found in rows.items()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        where = environment() | {"command": " ".join(["python -m eval.weights", *sys.argv[1:]])}
        where["versions"]["torchao"] = metadata.version("torchao")
        found = {"environment": where, "questions": counts, "weights": results}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
