# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from tests.close import VALUE, assert_close
from vlmamba.layers.multiscale import ChainedScan, MultiScaleSS2D
from vlmamba.ops import selective_scan, use_backend
from vlmamba.scans import get_scan


def large(module: torch.nn.Module) -> torch.nn.Module:
    """Weights so large that every parameter shows in the output."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module.double()


def chained(made: ChainedScan, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """What each order gives, of one sequence of all of them that is cut out, scanned and put back."""
    scan = get_scan(made.scan)
    order = scan.joined().paths(*grid)[0].long()
    padded = F.pad(x, (0, 0, 0, 1))  # a row of zeros, last: what -1 reads
    dt, A, B, C, D = (part[:, 0] if part.dim() == 4 else part[0] for part in made.operands(padded))
    with use_backend("reference"):
        y = selective_scan(padded[:, order], dt[:, order], A, B[:, order], C[:, order], D)
    lengths = [scan.only(k).paths(*grid).shape[1] for k in range(scan.num_paths)]
    given = [
        torch.zeros_like(padded).index_add(1, rows % padded.shape[1], part)[:, :-1]
        for rows, part in zip(order.split(lengths), y.split(lengths, dim=1), strict=True)
    ]
    return torch.stack(given, dim=1)


@pytest.mark.parametrize("scan", ["cross_scan", ("raster_reversed", "column"), "local_w2", "es2d_step2"], ids=str)
@pytest.mark.parametrize("grid", [(4, 6), (3, 5)], ids=str)
def test_orders_follow_one_another_as_one_sequence(scan, grid):
    made = large(ChainedScan(6, scan, 2, 3))
    x = torch.randn(2, grid[0] * grid[1], 6, dtype=torch.float64)
    assert_close("chain", made(x, grid), chained(made, x, grid), VALUE)


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 1)], ids=str)
def test_the_mixer_is_its_definition(grid):
    made = large(MultiScaleSS2D(8, state_size=2))
    x = torch.randn(2, *grid, 8, dtype=torch.float64)
    inner, gate = made.in_proj(x).chunk(2, dim=-1)
    planes = inner.movedim(-1, 1)
    whole, low = (F.silu(conv(planes)).movedim(1, -1) for conv in (made.conv2d, made.low_conv2d))
    small = tuple(-(-side // 2) for side in grid)
    assert tuple(low.shape[1:3]) == small
    y = made.out_norm(made.scans(whole.flatten(1, 2), grid)).unflatten(1, grid)
    below = made.out_norm(chained(made.low_scans, low.flatten(1, 2), small)).sum(1).unflatten(1, small)
    y = y + F.interpolate(below.movedim(-1, 1), grid, mode="bilinear").movedim(1, -1)
    weights = made.squeeze.expand(F.relu(made.squeeze.reduce(y.flatten(1, 2).mean(1)))).sigmoid()
    expected = made.out_proj(y * weights[:, None, None] * F.silu(gate))
    assert_close("map", made(x), expected, VALUE)
