# SPDX-License-Identifier: Apache-2.0
"""Facts about orders against those that were measured independently."""

import pytest
import torch

from vlmamba.scans import Locality, get_scan, locality

GRIDS = ((14, 14), (16, 16), (9, 13))
# jumps; largest step; mean and largest distance of neighbours, on each grid
MEASURED = """
raster         | 13; 13; 7.5; 14    | 15; 15; 8.5; 16    | 8; 12; 6.9; 13
column         | 13; 13; 7.5; 14    | 15; 15; 8.5; 16    | 12; 8; 5.1; 9
row_snake      | 0; 1; 7.5; 27      | 0; 1; 8.5; 31      | 0; 1; 6.9; 25
diag_same      | 193; 13; 9.5; 14   | 253; 15; 10.8; 16  | 114; 9; 7.2; 10
diag_snake     | 169; 1; 9.5; 26    | 225; 1; 10.8; 30   | 96; 1; 7.1; 17
diag_wrap      | 195; 13; 25.6; 183 | 255; 15; 29.6; 241 | 116; 12; 16.1; 109
spiral_out     | 0; 1; 16.6; 51     | 0; 1; 19.3; 59     | 0; 1; 13.1; 39
spiral_walk    | 0; 1; 16.6; 51     | 0; 1; 19.3; 59     | 3; 12; 10.9; 33
radial_rays    | 155; 7; 11.3; 171  | 211; 8; 12.5; 222  | 67; 6; 9.3; 102
radial_rings   | 174; 13; 17.8; 44  | 231; 15; 20.4; 52  | 115; 12; 12.4; 30
hilbert        | 0; 1; 8.8; 155     | 0; 1; 9.9; 213     | 0; 1; 6.5; 95
hilbert_crop   | 5; 3; 9.1; 161     | 0; 1; 9.9; 213     | 1; 4; 7.4; 86
hilbert_shift  | 19; 13; 15.1; 195  | 7; 15; 16.5; 255   | 13; 12; 11.4; 116
local_w7_nopad | 27; 13; 7.5; 56    | 47; 15; 9.4; 100   | 17; 12; 6.8; 49
local_w2_nopad | 97; 13; 7.5; 26    | 127; 15; 8.5; 30   | 52; 12; 7.0; 25
"""


@pytest.mark.parametrize("line", MEASURED.strip().splitlines(), ids=lambda line: line.split()[0])
def test_facts_are_the_measured_ones(line):
    name, *expected = (cell.strip() for cell in line.split("|"))
    for grid, facts in zip(GRIDS, expected, strict=True):
        found = locality(get_scan(name).paths(*grid)[0], grid)
        words = f"{found.jumps}; {found.largest_step}; {found.mean_distance:.1f}; {found.largest_distance}"
        assert words == facts, grid


def test_padded_steps_and_extra_tokens_take_time_but_no_place():
    # rows 0 1 / 2 3 with a token in the middle
    assert locality([0, 1, 4, 2, 3], (2, 2)) == Locality(1, 1, 2.0, 3)
    assert locality([0, 1, -1, 2, 3], (2, 2)) == Locality(1, 1, 2.0, 3)
    assert locality(torch.tensor([0, 1, 2, 3, -1]), (2, 2)) == Locality(1, 1, 1.5, 2)


def test_a_video_has_neighbours_in_time():
    assert locality(get_scan("vivim3").paths(2, 1, 2)[2], (2, 1, 2)) == Locality(1, 1, 1.5, 2)


@pytest.mark.parametrize("order", [[], [0], [-1]])
def test_nothing_lies_apart_in_a_single_position(order):
    assert locality(order, (1, 1)) == Locality(0, 0, 0.0, 0)


def test_bad_orders_are_named():
    with pytest.raises(ValueError, match="order visits a row twice"):
        locality([0, 1, 0], (1, 2))
    with pytest.raises(ValueError, match=r"order has shape \(1, 2\), expected \(steps,\)"):
        locality([[0, 1]], (1, 2))
