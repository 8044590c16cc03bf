# SPDX-License-Identifier: Apache-2.0
import torch

from tests.close import assert_close
from vlmamba.layers.rope import rotary_table, rotated


def test_pairs_turn_by_the_angles_of_their_row_and_column():
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    ours = rotated(x, rotary_table((2, 3), (2, 3), 8, length=14)).unflatten(1, (2, 3))
    # as complex numbers: pairs 0, 1 turn with the row, pairs 2, 3 with the column
    pairs = torch.view_as_complex(x.unflatten(-1, (4, 2)).unflatten(1, (2, 3)))
    frequencies = 10000.0 ** -(torch.arange(2, dtype=torch.float64) / 2)
    rows = (torch.arange(2) / 2 * 14).view(2, 1, 1) * frequencies + torch.zeros(2, 3, 2)
    columns = (torch.arange(3) / 3 * 14).view(1, 3, 1) * frequencies + torch.zeros(2, 3, 2)
    angles = torch.cat([rows, columns], dim=-1)
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    assert_close("rotated", ours.float(), expected)


def test_lengths_are_kept_and_half_precision_stays():
    x = torch.randn(1, 12, 16)
    table = rotary_table((3, 4), (3, 4), 16)
    assert_close("norm", rotated(x, table).norm(dim=-1), x.norm(dim=-1).double())
    half = rotated(x.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    assert_close("half", half, rotated(x.bfloat16().double(), table))


def test_another_grid_resizes_the_table_and_tables_are_kept():
    table = rotary_table((5, 7), (4, 4), 8)
    assert table.shape == (2, 35, 8) and rotary_table((5, 7), (4, 4), 8) is table
    with torch.inference_mode():
        made_there = rotary_table((3, 7), (4, 4), 8)
    assert not made_there.is_inference()
