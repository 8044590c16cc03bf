# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from vlmamba.scans import Scan, get_scan, list_scans, register_scan

SIDES = st.integers(1, 17)


def verified() -> dict[str, dict[str, list[list[int]]]]:
    """The verified orderings: the full table beside the golden outputs, else the copy for the scans there are."""
    full = golden.FOLDER.parent / "scan_paths.json"
    path = full if full.exists() else Path(__file__).parents[1] / "fixtures" / "scan_paths.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", list_scans())
def test_orders_are_the_verified_ones(name):
    for size, orders in verified()[name].items():
        height, width = map(int, size.split("x"))
        assert get_scan(name).paths(height, width).tolist() == orders, size


@pytest.mark.parametrize("name", list_scans())
@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES)
def test_every_order_is_a_permutation(name, height, width):
    scan = get_scan(name)
    paths = scan.paths(height, width)
    assert paths.shape == (scan.num_paths, height * width) and paths.dtype == torch.int32
    for order in paths:
        assert sorted(order.tolist()) == list(range(height * width))


@pytest.mark.parametrize("name", list_scans())
@settings(max_examples=25, deadline=None)
@given(height=SIDES, width=SIDES)
def test_merging_what_was_gathered_gives_k_times_it(name, height, width):
    scan = get_scan(name)
    x = torch.randn(2, height * width, 3, dtype=torch.float64)
    merged = scan.merge(scan.gather(x, height, width), height, width)
    torch.testing.assert_close(merged, scan.num_paths * x)


def test_tables_are_cached_and_follow_the_device():
    scan = get_scan("cross_scan")
    assert scan.paths(3, 5) is scan.paths(3, 5)
    assert scan.paths(3, 5, device="meta").is_meta


def test_a_scan_can_be_registered_once(monkeypatch):
    from vlmamba import scans

    monkeypatch.setattr(scans, "_REGISTRY", dict(scans._REGISTRY))
    mine = register_scan(Scan("last_first", 1, "backwards", lambda h, w: torch.arange(h * w).flip(0)[None]))
    assert get_scan("last_first") is mine and "last_first" in list_scans()
    with pytest.raises(ValueError, match="'last_first' is registered already"):
        register_scan(mine)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"unknown scan 'zigzig'; expected one of bidirectional, cross_scan, raster"):
        get_scan("zigzig")
    with pytest.raises(ValueError, match="the grid is 0 x 4"):
        get_scan("raster").paths(0, 4)
