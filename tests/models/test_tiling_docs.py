# SPDX-License-Identifier: Apache-2.0
"""docs/high_resolution.md: code that runs, true grids, the figures that were measured."""

import re
import runpy
from pathlib import Path

import pytest

from vlmamba.models.vlmamba.tiling import tile_grid

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "high_resolution.md").read_text()
GRIDS = re.findall(r"^\| (\d+) x (\d+)[^|]*\| (\d+ x \d+) \| (\d+ x \d+) \| (\d+ x \d+) \|$", PAGE, re.MULTILINE)


def test_its_code_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    names, lines = {}, re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for code in lines:
        exec(code, names)
    inputs = names["inputs"]
    assert inputs["pixel_values"].shape == (5, 3, 128, 128)
    assert (inputs["input_ids"] == names["processor"].image_token_id).sum() == 320
    assert "(5, 3, 128, 128)" in PAGE and "# 320: five times 64" in PAGE
    assert names["answer"].shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("row", GRIDS, ids=lambda row: f"{row[0]}x{row[1]}")
def test_its_grids_are_those_of_the_rule(row):
    size = (int(row[0]), int(row[1]))
    for limit, grid in zip((4, 12, 64), row[2:], strict=True):
        rows, columns = tile_grid(size, (224, 224), limit)
        assert f"{rows} x {columns}" == grid


def test_there_are_grids():
    assert len(GRIDS) == 5


def test_its_picture_shows_what_the_processor_makes():
    assert "high_resolution/tiles.png" in PAGE and (ROOT / "docs" / "high_resolution" / "tiles.png").exists()
    grid, views = runpy.run_path(str(ROOT / "docs" / "high_resolution" / "draw.py"))["views"]()
    assert f"{grid[0]} x {grid[1]} tiles" in PAGE and len(views) == 1 + grid[0] * grid[1]


def test_its_figures_are_the_measured_ones():
    measured = (ROOT / "benchmarks" / "results" / "tiles.md").read_text()
    rows = re.findall(r"^\| \d.*$", measured, re.MULTILINE)
    assert len(rows) == 7 and all(row in PAGE for row in rows)
    assert "../benchmarks/results/tiles.png" in PAGE and (ROOT / "benchmarks" / "results" / "tiles.png").exists()
