# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a model on emoji scenes, by kind of question, beside a blind model.

    python -m eval.emoji --data runs/emoji --out eval/results/emoji.json

Three columns: unseen scenes of known drawings (`scenes_test`), scenes of a vendor never seen in training
(`scenes_openmoji`), and the same questions as the first with a grey image (what the words alone give away).
An answer counts when it is the same after lower-casing and dropping articles and punctuation.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlmamba  # noqa: F401 - registers the models
from training.data.emoji_questions import is_correct
from vlmamba.assets import bundled_model

COLUMNS = {"scenes_test": False, "scenes_openmoji": False, "blind": True}


def questions(folder: Path, column: str, scenes: int) -> list[dict[str, Any]]:
    """One row a question: image, kind, question, answer; all questions of the first so many scenes."""
    blind = COLUMNS[column]
    rows = datasets.load_from_disk(folder / ("scenes_test" if blind else column))
    found = []
    for row in rows.select(range(min(scenes, len(rows)))):
        image = Image.new("RGB", row["image"].size, (127, 127, 127)) if blind else row["image"]
        found += [{"image": image, **question} for question in row["questions"]]
    return found


@torch.inference_mode()
def answers(model: Any, processor: Any, rows: list[dict[str, Any]], batch_size: int, title: str) -> list[str]:
    """Greedy answers; questions of like length share a batch."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["question"]))
    given: list[str] = [""] * len(rows)
    for start in tqdm(range(0, len(rows), batch_size), desc=title):
        index = order[start : start + batch_size]
        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": rows[i]["question"]}]}]
            for i in index
        ]
        texts = processor.apply_chat_template(chats, add_generation_prompt=True)
        images = [rows[i]["image"] for i in index]
        inputs = processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
        out = model.generate(**inputs.to(model.device), max_new_tokens=48, do_sample=False)
        decoded = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, answer in zip(index, decoded, strict=True):
            given[i] = answer.strip()
    return given


def score(rows: list[dict[str, Any]], given: list[str]) -> dict[str, dict[str, float]]:
    """Accuracy and number of questions by kind, and over all."""
    right = defaultdict(list)
    for row, answer in zip(rows, given, strict=True):
        right[row["kind"]].append(is_correct(answer, row["answer"], row["kind"]))
    table = {kind: {"accuracy": sum(v) / len(v), "questions": len(v)} for kind, v in sorted(right.items())}
    kinds = [entry["accuracy"] for entry in table.values()]
    table["mean over kinds"] = {"accuracy": sum(kinds) / len(kinds), "questions": len(rows)}
    return table


def markdown(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table of the README."""
    lines = ["| question | n | unseen scenes | unseen vendor | blind |", "|---|---:|---:|---:|---:|"]
    for kind, entry in results["scenes_test"].items():
        cells = [f"{100 * results[c][kind]['accuracy']:.1f} %" for c in COLUMNS if kind in results[c]]
        lines.append(f"| {kind.replace('_', ' ')} | {entry['questions']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled_model(), help="model folder (default: bundled)")
    parser.add_argument("--data", type=Path, default=Path("runs/emoji"), help="folder of training.build_emoji")
    parser.add_argument("--scenes", type=int, default=2000, help="scenes of each set (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, help="write the results as JSON, with every answer beside it as JSONL")
    arguments = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    results = {}
    for column in COLUMNS:
        rows = questions(arguments.data, column, arguments.scenes)
        given = answers(model, processor, rows, arguments.batch_size, column)
        results[column] = score(rows, given)
    print(markdown(results))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
