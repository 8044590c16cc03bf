# SPDX-License-Identifier: Apache-2.0
"""Of the orders that a softmax weighs, the best are kept with their parameters."""

import pytest
import torch

from tests.close import assert_close
from vlmamba import get_scan
from vlmamba.layers.map_scan import MapScan
from vlmamba.layers.merging import ChannelGatedSum
from vlmamba.layers.scan_search import best_orders, keep_orders, order_names, order_shares
from vlmamba.layers.vision_mixer import VisionMixer

NAMES = ["raster", "raster_reversed", "column", "local_w2"]


def searching() -> tuple[VisionMixer, MapScan]:
    torch.manual_seed(0)
    mixer = VisionMixer(8, 4, state_size=2, merge="softmax")
    scans = MapScan(16, NAMES, state_size=2, time_step_rank=1, merge="softmax")
    for module in (mixer, scans):
        module.reset_parameters()
        module.eval().double()
    return mixer, scans


def test_shares_sum_to_one_and_the_largest_are_found():
    mixer, _ = searching()
    with torch.no_grad():
        mixer.merge.weights.copy_(torch.tensor([0.0, 2.0, -1.0, 1.0]))
    (shares,) = order_shares(mixer)
    assert_close("sum", shares.sum(), torch.ones((), dtype=torch.float64))
    assert best_orders(shares, 2) == [1, 3] and best_orders(shares, 3) == [0, 1, 3]
    with pytest.raises(ValueError, match="count is 5, expected 1 to 4, the orders of a layer"):
        best_orders(shares, 5)


@pytest.mark.parametrize("kept", [[1, 3], [0, 1, 2, 3], [2]], ids=str)
def test_what_is_kept_computes_what_it_did(kept):
    mixer, scans = searching()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    rows = torch.randn(2, 6, 16, dtype=torch.float64)
    given = []  # what each order gives, before it is weighed
    for module in (mixer, scans):
        module.merge.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    mixer(x, get_scan(NAMES).paths(2, 3))
    scans(rows, (2, 3))
    for module, y in zip((mixer, scans), given, strict=True):
        gate = module.merge.gate
        keep_orders(module, kept)
        assert isinstance(module.merge, ChannelGatedSum) and module.merge.gate is gate
        expected = gate(y[:, kept]).sum(1)
        if module is mixer:
            names = [NAMES[k] for k in kept]
            assert_close("mixer", mixer(x, get_scan(names).paths(2, 3)), mixer.out_proj(expected))
        else:
            assert scans.scan == [NAMES[k] for k in kept]
            assert_close("map", scans(rows, (2, 3)), expected)


def test_every_order_of_a_scan_has_a_name():
    assert order_names("raster") == ["raster"]
    assert order_names(["raster+local_w2", "bidirectional"]) == [
        "raster",
        "local_w2",
        "bidirectional[0]",
        "bidirectional[1]",
    ]
