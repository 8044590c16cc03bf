# SPDX-License-Identifier: Apache-2.0
"""The benchmark of tiles: both models read the same tiles, every figure follows from its rounds."""

import json
from statistics import median

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import shapes, tiles
from benchmarks.__main__ import app
from benchmarks.peers.vlms import PLACEHOLDER, VLMS, cache_bytes


@pytest.mark.parametrize("count", [1, 2, 8])
def test_an_image_is_exactly_so_many_tiles(count):
    ids, pixels = tiles.inputs(shapes.QUICK_VLM, count)
    assert pixels.shape == (count, 3, 32, 32)
    assert (ids == PLACEHOLDER).sum() == 4 * count and ids.shape == (1, 4 * count + tiles.QUESTION_TOKENS)


def test_the_models_are_of_one_size():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in made(shapes.VLM_130M).model.parameters()) for made in VLMS.values()]
    assert abs(counts[0] / counts[1] - 1) < 0.01, counts


@pytest.mark.parametrize("name", VLMS)
def test_decoding_can_be_measured_again(name):
    vlm = VLMS[name](shapes.QUICK_VLM)
    cache = vlm.prefill(*tiles.inputs(shapes.QUICK_VLM, 2))
    size = cache_bytes(cache)
    for _ in range(2):
        vlm.decode(cache, 3)
        assert cache_bytes(cache) == size > 0


def test_only_the_keys_and_values_grow():
    sizes = {
        name: [cache_bytes(made(shapes.QUICK_VLM).prefill(*tiles.inputs(shapes.QUICK_VLM, n))) for n in (1, 2)]
        for name, made in VLMS.items()
    }
    assert sizes[tiles.OURS][0] == sizes[tiles.OURS][1]
    llama = shapes.QUICK_VLM.llama
    # keys and values, float32, of the 4 tokens of another tile
    assert sizes[tiles.PEER][1] - sizes[tiles.PEER][0] == 2 * 4 * 4 * llama["num_hidden_layers"] * llama["hidden_size"]


def test_the_table_is_made(tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["tiles", "--quick", "--rounds", "2", "--no-memory", "--out", str(tmp_path)]
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    content = json.loads((tmp_path / "tiles.json").read_text())
    assert [result["tiles"] for result in content["results"]] == list(shapes.QUICK_TILES)
    for result in content["results"]:
        for task in tiles.TASKS:
            ours, peer = (result["seconds"][task][name] for name in VLMS)
            assert len(ours) == len(peer) == 2
            assert result["ratios"][task]["median"] == median(p / o for p, o in zip(peer, ours, strict=True))
    table = (tmp_path / "tiles.md").read_text()
    assert all(f"\n| {count} |" in table for count in shapes.QUICK_TILES)
    assert (tmp_path / "tiles.png").stat().st_size > 0


def test_numbers_of_tiles_are_powers_of_two():
    found = CliRunner().invoke(app, ["tiles", "--tiles", "3"], env={"COLUMNS": "200"})
    assert found.exit_code == 2 and "expected powers of two" in " ".join(found.output.split())
