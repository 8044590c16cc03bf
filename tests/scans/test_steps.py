# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vlmamba.scans import get_scan
from vlmamba.scans.steps import moves_of, steps_of

GRIDS = [(1, 1), (1, 4), (4, 4), (3, 5), (5, 3)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", ["plainmamba4", "zigma8", "cross_scan"])
def test_steps_undo_the_order(name, grid):
    scan = get_scan(name)
    steps = steps_of(scan).paths(*grid).long()
    paths = scan.paths(*grid).long()
    assert torch.equal(steps.gather(1, paths), torch.arange(paths.shape[1]).expand_as(paths))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_moves_are_plainmambas_directions_told_by_row(grid):
    scan = get_scan("plainmamba4")
    by_step = moves_of(scan).paths(*grid).gather(1, scan.paths(*grid).long())
    assert torch.equal(by_step, get_scan("plainmamba4_directions").paths(*grid))


def test_padded_steps_are_not_counted():
    steps = steps_of(get_scan("local_w2")).paths(3, 3)
    assert torch.equal(steps, torch.tensor([[0, 1, 4, 2, 3, 5, 6, 7, 8]], dtype=torch.int32))


def test_orders_that_do_not_visit_every_row_once_are_an_error():
    with pytest.raises(ValueError, match="steps_of: scan 'es2d_step2' is of kind 'parts', expected 'grid'"):
        steps_of(get_scan("es2d_step2"))
