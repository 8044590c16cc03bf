# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, compare before they time, and write what they measured; no figure is judged here."""

import json
from dataclasses import asdict
from statistics import median

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import agreement, memory, report, roofline, scan
from benchmarks.__main__ import app
from benchmarks.options import Options
from benchmarks.peers import mambapy
from benchmarks.peers.language_models import LANGUAGE_MODELS
from benchmarks.shapes import QUICK_SCANS, SCANS
from benchmarks.timing import SLOW_ROUNDS, interleave, ratios
from vlmamba.ops import native

QUICK = ["--quick", "--threads", "1", "--rounds", "2", "--no-memory"]


def run(tmp_path, *arguments: str) -> dict:
    """The JSON that a command wrote, and its plot if there is matplotlib."""
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("*.json")
    pytest.importorskip("matplotlib")
    assert path.with_suffix(".png").stat().st_size > 0
    return json.loads(path.read_text())


def assert_ratios_follow_from_the_rounds(result: dict) -> None:
    samples = result["seconds"]
    assert result["ratios"]
    for subject, peers in result["ratios"].items():
        assert set(peers) == set(samples) - {subject}
        for name, shown in peers.items():
            each = [peer / own for peer, own in zip(samples[name], samples[subject], strict=True)]
            assert shown == {"median": median(each), "min": min(each), "max": max(each)}


def test_scan(tmp_path):
    content = run(tmp_path, "scan", *QUICK)
    assert {r["shape"]["name"] for r in content["results"]} == set(QUICK_SCANS)
    expected = {"torch", "transformers", "plain reference"}
    expected |= {"native"} if native.available() else set()
    expected |= set() if mambapy.reason() else {"mambapy"}
    for result in content["results"]:
        assert expected <= set(result["seconds"]), result["skipped"]
        assert all(len(samples) == 2 and min(samples) > 0 for samples in result["seconds"].values())
        assert_ratios_follow_from_the_rounds(result)
        assert set(result["errors"]) >= set(result["seconds"])
    assert "commit" in content and all(content[key] for key in ("cpu", "cores", "date", "versions", "command"))


def test_length_curve(tmp_path):
    content = run(tmp_path, "scan", "--length-curve", "--modes", "forward", *QUICK)
    assert [r["length"] for r in content["results"]] == [16, 32, 64]
    for result in content["results"]:
        assert {content["subject"], "transformers"} == set(result["seconds"])


def test_lm(tmp_path):
    content = run(tmp_path, "lm", *QUICK)
    assert [r["task"] for r in content["results"]] == ["prefill 8", "prefill 16", "decode after 16"]
    expected = {name for name, (_, reason) in LANGUAGE_MODELS.items() if not reason()}
    for result in content["results"]:
        assert set(result["seconds"]) == expected, content["skipped"]
        assert_ratios_follow_from_the_rounds(result)
        for name, speed in result["tokens_per_second"].items():
            assert speed == result["tokens"] / median(result["seconds"][name])


def test_vision(tmp_path):
    pytest.importorskip("timm")
    content = run(tmp_path, "vision", *QUICK)
    for result in content["results"]:
        assert {"Vim-S", "VMamba-T", "ViT-S/16 (timm)"} <= set(result["seconds"])
        assert_ratios_follow_from_the_rounds(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scan", "--shapes", "a,d"], "expected some of a, b, c1, c2"),
        (["scan", "--modes", "backward"], "expected some of forward, training"),
        (["lm", "--threads", "none"], "expected positive numbers"),
        (["vision", "--rounds", "0"], "--rounds"),
    ],
)
def test_a_wrong_option_is_named(arguments, message):
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize("command", ["scan", "lm", "vision", "encoders", "tiles", "prefix", "triton"])
def test_help(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0


@pytest.mark.parametrize("mode", scan.MODES)
def test_a_wrong_peer_gets_no_ratio(mode, monkeypatch):
    """Its value is wrong, or only its gradient."""

    def wrong(shape):
        job = scan.PROVIDERS["torch"].job(shape)
        function = job.function
        add = (lambda y: y + 0.01) if mode == "forward" else (lambda y: y + 0.01 * (y - y.detach()))
        job.function = lambda **operands: add(function(**operands))
        return job

    monkeypatch.setitem(scan.PROVIDERS, "wrong", scan.Provider(wrong))
    calls, errors, skipped = scan.prepare(QUICK_SCANS["a"], mode, compiled=False, check=True)
    assert "wrong" not in calls and "torch" in calls
    assert skipped["wrong"].startswith("no ratio: ") and errors["wrong"] > agreement.VALUE
    calls, _, _ = scan.prepare(QUICK_SCANS["a"], mode, compiled=False, check=False)
    assert "wrong" in calls


def test_training_that_would_take_minutes_is_left_out_with_its_reason():
    provider = scan.PROVIDERS["transformers"]
    assert "quadratic" in provider.needs(SCANS["a"], "training")
    assert not any(provider.needs(SCANS[name], mode) for name in ("b", "c1", "c2") for mode in scan.MODES)


def test_candidates_take_turns():
    order = []
    options = Options(rounds=3, min_seconds=0.0)
    samples = interleave({name: lambda name=name: order.append(name) for name in "AB"}, options)
    assert "".join(order) == "AB" * 4
    assert all(len(s.cpu) == len(s.wall) == 3 for s in samples.values())


def test_a_slow_call_is_timed_less_often(monkeypatch):
    monkeypatch.setattr("benchmarks.timing.SLOW_SECONDS", -1.0)
    samples = interleave({"A": lambda: None}, Options(rounds=9, min_seconds=0.0))
    assert len(samples["A"].wall) == SLOW_ROUNDS


def test_a_ratio_is_taken_round_by_round():
    found = ratios({"ours": [1.0, 2.0, 4.0], "peer": [10.0, 10.0, 10.0]}, ["ours", "absent"])
    assert found == {"ours": {"peer": {"median": 5.0, "min": 2.5, "max": 10.0}}}


def test_results_that_are_not_finite_never_agree():
    wrong = torch.tensor([1.0, float("nan")])
    for measure in (agreement.difference, agreement.rms_difference):
        assert measure(wrong, torch.ones(2)) == float("inf")
        assert measure(torch.ones(3), torch.ones(2)) == float("inf")
        assert measure(torch.ones(2), torch.ones(2)) == 0


def test_peak_memory_counts_what_a_call_takes():
    if why := memory.reason():
        pytest.skip(why)
    shape = asdict(SCANS["c2"])
    found = memory.peak("benchmarks.scan:memory_job", shape=shape, mode="forward", provider="torch")
    assert found >= 4 * shape["batch"] * shape["length"] * shape["channels"]
    with pytest.raises(RuntimeError, match="benchmarks.scan:memory_job: KeyError"):
        memory.peak("benchmarks.scan:memory_job", shape=shape, mode="forward", provider="nobody")


def test_the_floor_grows_with_the_states():
    slot = roofline.slot_seconds()
    if slot is None:
        pytest.skip("no C compiler")
    assert 0 < roofline.floor_nanoseconds(1, slot) < roofline.floor_nanoseconds(16, slot)


@pytest.mark.parametrize(("value", "text"), [(648.4, "648"), (64.25, "64.2"), (1.256, "1.26"), (0.0, "0.00")])
def test_three_figures(value, text):
    assert report.short(value) == text
