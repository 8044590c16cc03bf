# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

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
    for size, orders in verified().get(name, {}).items():
        height, width = map(int, size.split("x"))
        assert get_scan(name).paths(height, width).tolist() == orders, size


@pytest.mark.parametrize("name", list_scans())
@settings(max_examples=40, deadline=None)
@given(height=SIDES, width=SIDES)
def test_no_order_visits_a_row_twice_and_together_they_visit_all(name, height, width):
    scan = get_scan(name)
    paths = scan.paths(height, width)
    assert paths.shape[0] == scan.num_paths and paths.dtype == torch.int32
    for order in paths:
        real = order[order >= 0]
        assert real.unique().numel() == real.numel()
    assert set(paths[paths >= 0].tolist()) == set(range(height * width))


@pytest.mark.parametrize("name", ["raster", "bidirectional", "cross_scan"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (4, 4), (3, 5)])
def test_whole_grid_orders_are_permutations(name, size):
    for order in get_scan(name).paths(*size):
        assert sorted(order.tolist()) == list(range(size[0] * size[1]))


@pytest.mark.parametrize("name", list_scans())
@settings(max_examples=25, deadline=None)
@given(height=SIDES, width=SIDES)
def test_merging_what_was_gathered_gives_each_row_as_often_as_it_was_visited(name, height, width):
    scan = get_scan(name)
    paths = scan.paths(height, width)
    visits = torch.bincount(paths[paths >= 0], minlength=height * width)
    x = torch.randn(2, height * width, 3, dtype=torch.float64)
    merged = scan.merge(scan.gather(x, height, width), height, width)
    torch.testing.assert_close(merged, visits[:, None] * x)
    if name in ("raster", "bidirectional", "cross_scan"):
        assert (visits == scan.num_paths).all()


def test_tables_are_built_once_and_follow_the_device():
    scan = get_scan("cross_scan")
    assert scan.paths(3, 5) is scan.paths(3, 5)
    assert scan.paths(3, 5, device="meta").is_meta


def test_tables_that_only_pretend_are_not_kept():
    scan = get_scan("cross_scan")
    scan.paths(2, 9)
    with FakeTensorMode():
        assert isinstance(scan.paths(2, 9, device="meta"), FakeTensor)
    assert type(scan.paths(2, 9, device="meta")) is torch.Tensor


def test_a_table_first_made_in_inference_mode_serves_training():
    scan = Scan("fresh", 1, "row by row", lambda h, w: torch.arange(h * w)[None])
    with torch.inference_mode():
        scan.paths(2, 3)
    assert not scan.paths(2, 3).is_inference()


def test_a_scan_can_be_registered_once(monkeypatch):
    from vlmamba import scans

    monkeypatch.setattr(scans, "_REGISTRY", dict(scans._REGISTRY))
    mine = register_scan(Scan("last_first", 1, "backwards", lambda h, w: torch.arange(h * w).flip(0)[None]))
    assert get_scan("last_first") is mine and "last_first" in list_scans()
    with pytest.raises(ValueError, match="'last_first' is registered already"):
        register_scan(mine)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"unknown scan 'zigzig'; expected one of bidirectional, cross_scan, cross_"):
        get_scan("zigzig")
    with pytest.raises(ValueError, match="the grid is 0 x 4"):
        get_scan("raster").paths(0, 4)
