# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.close import VALUE, assert_close
from vlmamba.layers.concat_mixer import ConcatMixer
from vlmamba.layers.maps import LayerScale, MapBlock
from vlmamba.layers.windows import WindowAttention, from_windows, to_windows
from vlmamba.ops import selective_scan, use_backend


@pytest.mark.parametrize(("grid", "side"), [((4, 6), 2), ((5, 7), 3), ((2, 3), 4), ((1, 1), 1), ((6, 4), 1)])
def test_windows_are_cut_row_by_row_and_put_back(grid, side):
    x = torch.randn(2, *grid, 3)
    windows = to_windows(x, side)
    columns = -(-grid[1] // side)
    assert windows.shape == (2 * columns * -(-grid[0] // side), side, side, 3)
    assert torch.equal(from_windows(windows, grid), x)
    padded = F.pad(x, (0, 0, 0, side, 0, side))
    for number, window in enumerate(windows[: len(windows) // 2]):
        row, column = side * (number // columns), side * (number % columns)
        assert torch.equal(window, padded[0, row : row + side, column : column + side])


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False, "qk_norm": True}], ids=str)
def test_attention_is_its_definition(options):
    made = WindowAttention(12, 3, **options).double()
    x = torch.randn(2, 2, 3, 12, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in made.qkv(x.flatten(1, 2)).chunk(3, dim=-1))
    scores = (made.q_norm(q) @ made.k_norm(k).transpose(-1, -2) / 2).softmax(-1)
    expected = made.out_proj((scores @ v).transpose(1, 2).flatten(2)).view_as(x)
    assert_close("attention", made(x), expected, VALUE)


def test_the_mixer_is_its_definition():
    made = ConcatMixer(10, state_size=2).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(2, 2, 3, 10, dtype=torch.float64)
    rows = made.in_proj(x).flatten(1, 2)
    around = F.pad(rows, (0, 0, 1, 1))  # a step before the first and one after the last
    taps = made.conv.weight.flatten(1)
    y, z = F.silu(sum(around[:, i : i + 6] * taps[:, i] for i in range(3))).chunk(2, dim=-1)
    scans = made.scans
    dt, B, C = scans.x_proj(y).split(scans.splits, dim=-1)
    bias = scans.dt_projs[0].bias
    dt = dt @ scans.dt_projs[0].weight.T + 2 * bias
    with use_backend("reference"):
        y = selective_scan(y, dt, -scans.A_log[0].exp(), B, C, scans.D[0])
    expected = made.out_proj(torch.cat([y, z], dim=-1)).view_as(x)
    assert_close("mixer", made(x), expected, VALUE)


def test_a_block_scales_what_it_adds():
    def scale() -> LayerScale:
        made = LayerScale(4, 0.1)
        made.reset_parameters()
        return made

    plain = MapBlock(nn.Identity(), nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4))
    scaled = MapBlock(plain.norm, plain.mixer, plain.mlp_norm, plain.mlp, 0.0, scale(), scale())
    x = torch.randn(2, 3, 3, 4)
    half = x + 0.1 * plain.mixer(x)
    torch.testing.assert_close(scaled(x), half + 0.1 * plain.mlp(half))
