# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.scans import get_scan

PATHS = get_scan("cross_scan").paths(3, 4)


def mixer(**options) -> VisionMixer:
    """Of weights so large that every parameter shows in the output."""
    made = VisionMixer(8, 4, state_size=3, **options).double()
    made.reset_parameters()
    with torch.no_grad():
        for direction in made.directions:
            direction.x_proj.weight.normal_()
            direction.dt_proj.bias.zero_()
    return made


@pytest.mark.parametrize("shared", ["none", "all", "inputs"])
def test_directions_share_what_they_should(shared):
    made = mixer(shared=shared, layer_scale=0.5)
    assert len(made.directions) == (4 if shared == "none" else 1)
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    out = made(x, PATHS)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_shared_parameters_equal_copies_of_them():
    one, four = mixer(shared="all"), mixer()
    four.load_state_dict({**four.state_dict(), **one.state_dict()})
    for direction in four.directions[1:]:
        direction.load_state_dict(one.directions[0].state_dict())
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(one(x, PATHS), four(x, PATHS))


def test_turning_the_image_and_its_paths_turns_the_output():
    made = mixer(shared="all")
    x = torch.randn(1, 3, 4, 8, dtype=torch.float64)
    upright = made(x.flatten(1, 2), PATHS).view(1, 3, 4, 8)
    turned = made(x.transpose(1, 2).flatten(1, 2), get_scan("cross_scan").paths(4, 3)).view(1, 4, 3, 8)
    torch.testing.assert_close(turned.transpose(1, 2), upright)


def test_average_divides_the_sum_before_the_projection():
    made = mixer(shared="all")
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    total = made(x, PATHS)
    made.average = True
    torch.testing.assert_close(made(x, PATHS), total / 4)


def test_a_float64_mixer_computes_in_float64():
    made = mixer()
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    before = made(x, PATHS)
    with torch.no_grad():
        made.directions[0].A_log[0] += 1e-9
    change = (made(x, PATHS) - before).abs().max()
    assert 0 < change < 1e-6


def test_an_unknown_way_to_share_is_named():
    with pytest.raises(ValueError, match="shared is 'some', expected 'none', 'all' or 'inputs'"):
        VisionMixer(8, 2, shared="some")


@torch.no_grad()
def test_operations_are_counted_without_gradients():
    with FlopCounterMode(display=False) as counter:
        mixer(shared="all")(torch.randn(1, 12, 8, dtype=torch.float64), PATHS)
    # in_proj and out_proj of 8 x 32 and 16 x 8; of 16 channels in 4 orders x_proj (1 + 2 * 3) and dt_proj
    assert counter.get_total_flops() == 2 * 12 * (8 * 32 + 16 * 8 + 4 * 16 * (7 + 1))
