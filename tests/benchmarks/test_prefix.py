# SPDX-License-Identifier: Apache-2.0
"""The benchmark of states runs and compares before it times; no figure is judged here."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks import prefix, shapes
from benchmarks.__main__ import app
from benchmarks.options import Options


def test_what_is_written(tmp_path):
    command = ["prefix", "--quick", "--rounds", "2", "--no-memory", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "prefix.json").read_text())
    assert [r["questions"] for r in content["questions"]] == [1, 2]
    for found in content["questions"]:
        assert all(len(samples) == 2 and min(samples) > 0 for samples in found["seconds"].values())
        fresh, state = found["seconds"][prefix.FRESH], found["seconds"][prefix.STATE]
        each = [a / b for a, b in zip(fresh, state, strict=True)]
        assert found["ratios"][prefix.STATE][prefix.FRESH]["max"] == max(each)
        assert found["image_tokens"] == 4 and found["state_bytes"] > 0
    assert [r["tokens"] for r in content["prompts"]] == [8, 16]
    assert "# What a state saves" in (tmp_path / "prefix.md").read_text()


def test_ways_that_disagree_are_not_timed(monkeypatch):
    monkeypatch.setattr(prefix.Subject, "fresh", lambda self, questions: self.answer(questions + 1))
    with pytest.raises(RuntimeError, match="from the state.*: logits differ from those afresh by"):
        prefix.run({"tiny": shapes.QUICK_VLM}, [1], shapes.QUICK_VLM, [], Options(min_seconds=0.0))


def test_the_kv_cache_is_of_the_computed_size():
    assert prefix.measured_kv_cache_bytes(shapes.QUICK_VLM, 5) == prefix.kv_cache_bytes(shapes.QUICK_VLM, 5)


def test_states_grow_by_their_ids_only():
    counts = [r["state_bytes"] for r in prefix.run({}, [], shapes.QUICK_VLM, [1, 9], Options(memory=False))["prompts"]]
    assert counts[1] - counts[0] == 8 * 8
