# SPDX-License-Identifier: Apache-2.0
"""Orders of a grid as orders of tokens: padded steps get rows, a class token stands in the middle."""

import pytest
import torch

from vlmamba import get_scan
from vlmamba.scans.local import LOCAL_SCANS, over_tokens


def test_padded_steps_become_rows_after_the_tokens():
    # a 2 x 3 grid in windows of 2 x 2: the second window has an empty column
    assert get_scan("local_w2").paths(2, 3).tolist() == [[0, 1, 3, 4, 2, -1, 5, -1]]
    assert over_tokens(get_scan("local_w2")).paths(2, 3).tolist() == [[0, 1, 3, 4, 2, 6, 5, 7]]
    assert over_tokens(get_scan("local_w2_flip")).paths(2, 3).tolist() == [[6, 5, 7, 2, 4, 3, 1, 0]]


def test_a_class_token_is_read_in_the_middle_of_the_patches():
    # row 3 is the class token, and the patches after it moved on by one
    assert over_tokens(get_scan("raster"), True).paths(2, 3).tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert over_tokens(get_scan("local_w2"), True).paths(2, 3).tolist() == [[0, 1, 4, 3, 5, 2, 7, 6, 8]]


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (5, 3), (2, 9), (14, 14)], ids=str)
def test_every_order_reads_every_token_once_and_then_ends(grid, class_token):
    scan = over_tokens(get_scan(LOCAL_SCANS), class_token)
    length = grid[0] * grid[1] + class_token
    paths = scan.paths(*grid)
    assert paths is scan.paths(*grid) and scan.num_rows(*grid) == length
    for path in paths:
        steps = path[path >= 0]
        assert (path[len(steps) :] == -1).all()
        assert torch.equal(steps.sort().values, torch.arange(len(steps), dtype=torch.int32))
    assert paths.max() == paths.shape[1] - 1  # the longest order has the last row


def test_a_scan_is_made_once_and_only_of_a_grid():
    assert over_tokens(get_scan("local_w3")) is over_tokens(get_scan("local_w3"))
    with pytest.raises(ValueError, match="scan 'es2d_step2' is of kind 'parts', expected 'grid'"):
        over_tokens(get_scan("es2d_step2"))
