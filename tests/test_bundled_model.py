# SPDX-License-Identifier: Apache-2.0
"""The model inside the package: small enough, complete, and it answers what the README says it answers."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from eval.emoji import answers
from vlmamba.assets import bundled_model
from vlmamba.data import load_image

ROOT = Path(__file__).parents[1]
# | `castle.png` | question | answer | right? |
ROW = re.compile(r"^\| `(\w+\.png)` \| (.+?) \| (.+?) \| (?:yes|no) \|$", re.MULTILINE)
DOCUMENTED = ROW.findall((ROOT / "README.md").read_text())


@pytest.fixture(scope="module")
def loaded():
    folder = bundled_model()
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, AutoProcessor.from_pretrained(folder)


def rows() -> list[dict]:
    return [{"image": load_image(ROOT / "examples" / name), "question": question} for name, question, _ in DOCUMENTED]


def test_it_is_at_most_12_megabytes_and_computes_in_float32(loaded):
    assert sum(path.stat().st_size for path in bundled_model().iterdir()) <= 12e6
    assert loaded[0].dtype == torch.float32


def test_the_readme_shows_its_answers(loaded):
    assert len(DOCUMENTED) == 10
    given = answers(*loaded, rows(), batch_size=1, title="single")
    assert given == [answer for _, _, answer in DOCUMENTED]


def test_a_batch_answers_as_each_question_alone(loaded):
    assert answers(*loaded, rows(), batch_size=10, title="batch") == [answer for _, _, answer in DOCUMENTED]
