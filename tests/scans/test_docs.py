# SPDX-License-Identifier: Apache-2.0
"""docs/scans.md: every order with its picture and true figures, and code that runs."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from vlmamba import scans
from vlmamba.scans import get_scan, list_scans, locality

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "scans.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| !\[\1\]\(scans/\1\.png\) \|.*\| (.*) \|$", PAGE, re.MULTILINE)
UNMEASURED = ("labels", "scales", "parts")


@pytest.mark.parametrize("name", list_scans())
def test_every_order_is_named(name):
    assert f"`{name}`" in PAGE


def test_every_picture_is_there_and_shown():
    pictured = runpy.run_path(str(DOCS / "scans" / "draw.py"))["pictured"]()
    assert sorted(name for name, _ in ROWS) == pictured
    assert sorted(path.stem for path in (DOCS / "scans").glob("*.png")) == pictured
    assert sum(path.stat().st_size for path in (DOCS / "scans").glob("*.png")) < 700_000


@pytest.mark.parametrize(("name", "figures"), ROWS, ids=lambda value: value if value.isidentifier() else "")
def test_figures_are_those_of_the_orders(name, figures):
    scan = get_scan(name)
    if scan.kind in UNMEASURED:
        assert figures == "–"
        return
    grid = (4, 7, 7) if scan.kind == "video" else (14, 14)
    facts = [locality(order, grid) for order in scan.paths(*grid)]
    words = [f"{f.jumps}; {f.largest_step}; {f.mean_distance:.1f}; {f.largest_distance}" for f in facts]
    assert figures == "<br>".join(dict.fromkeys(words))


@pytest.mark.parametrize("kind", scans.KINDS)
def test_every_kind_is_explained(kind):
    assert f"| `{kind}` |" in PAGE


def test_its_code_runs(monkeypatch):
    monkeypatch.setattr(scans, "_REGISTRY", dict(scans._REGISTRY))
    monkeypatch.setattr(scans, "_made", dict(scans._made))
    names = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    torch.testing.assert_close(names["scan"].merge(names["steps"], 3, 4), 8 * names["x"])
    assert len(names["orders"]) == 24 and names["back"].shape == names["x"].shape
