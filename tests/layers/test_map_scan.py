# SPDX-License-Identifier: Apache-2.0
"""Scans of a map whose tables have padded steps."""

import pytest
import torch

from tests.close import GRADIENT, assert_close
from vlmamba import get_scan
from vlmamba.layers.map_scan import MapScan
from vlmamba.ops import selective_scan
from vlmamba.scans.base import orders


def made(scan: str | list[str], merge: str = "sum") -> MapScan:
    torch.manual_seed(0)
    scans = MapScan(6, scan, state_size=3, time_step_rank=2, merge=merge).double()
    scans.reset_parameters()
    for project in scans.dt_projs:
        torch.nn.init.normal_(project.bias)
    return scans


def with_rows_of_zeros(scans: MapScan, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What official code does: it pads the map, or sequence, with zeros, and projects these too."""
    length, total = x.shape[1], 0
    for k, order in enumerate(orders(get_scan(scans.scan), *grid)):
        path = torch.tensor(order.copy())
        path[path < 0] = length + torch.arange(int((path < 0).sum()))
        rows = torch.nn.functional.pad(x, (0, 0, 0, int((torch.tensor(order.copy()) < 0).sum())))
        projected = scans.x_proj(rows).unflatten(-1, (len(scans.dt_projs), -1))[:, :, k]
        dt, B, C = projected.split(scans.splits, dim=-1)
        y = selective_scan(rows, scans.dt_projs[k](dt), -scans.A_log[k].exp(), B, C, scans.D[k], paths=path)
        total = total + y[:, :length]
    return total


@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (3, 8)], ids=str)
@pytest.mark.parametrize("scan", ["es2d_step2", ["local_w7_flip", "raster", "local_w2", "column_reversed"]], ids=str)
def test_padded_steps_are_rows_of_zeros(scan, grid):
    scans = made(scan)
    x = torch.randn(2, grid[0] * grid[1], 6, dtype=torch.float64, requires_grad=True)
    outs = [scans(x, grid), with_rows_of_zeros(scans, x, grid)]
    assert_close("y", *outs)
    weight = torch.randn_like(x)
    parameters = {"x": x, **dict(scans.named_parameters())}
    ours, expected = (torch.autograd.grad((out * weight).sum(), parameters.values()) for out in outs)
    for name, gradient, reference in zip(parameters, ours, expected, strict=True):
        assert_close(name, gradient, reference, GRADIENT)
