# SPDX-License-Identifier: Apache-2.0
"""Exchanged channels and guided fusion, as MambaDFuse has them."""

import pytest
import torch
from torch import nn

from tests import golden
from tests.close import assert_close
from vlmamba.layers.fusion.channel_exchange import ChannelExchange, exchange_channels
from vlmamba.layers.fusion.multi_modal import MultiModalFusion, MultiModalMixer
from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.models.mambadfuse import MambaDFuseConfig
from vlmamba.models.mambadfuse.convert_mambadfuse import rename
from vlmamba.scans import get_scan


def load(layer: nn.Module, fixture: golden.Golden, official: str, ours: str) -> nn.Module:
    """Fill a layer with official weights, named as in a whole model."""
    renamed = rename({f"{official}.{key}": v for key, v in fixture.weights.items()}, MambaDFuseConfig())
    layer.load_state_dict({key.removeprefix(ours): v for key, v in renamed.items()})
    return layer


@pytest.mark.parametrize("name", golden.names("mambadfuse-chexchange"))
def test_the_official_exchange_is_met(name):
    fixture = golden.load(name)
    width, length = fixture.arguments["dim"], fixture.arguments["L"]
    layer = ChannelExchange(*(nn.LayerNorm(width) for _ in range(2)), *(VisionMixer(width, 1) for _ in range(2)))
    load(layer, fixture, "channel_exchange1", "exchange.0.")
    a, b, residual, residual_x = (fixture.io[f"input.{i}"] for i in range(1, 5))
    paths = get_scan("raster").paths(1, length)
    with torch.no_grad():
        mixed, mixed_x = layer(residual + a, residual_x + b, paths)
        exchanged, exchanged_x = exchange_channels(fixture.io["inter.norm1"], fixture.io["inter.norm2"])
    fixture.check(mixed, "output.I1")
    fixture.check(mixed_x, "output.I2")
    fixture.check(residual + a, "output.I1_residual")
    fixture.check(residual_x + b, "output.I2_residual")
    fixture.check(exchanged, "inter.ChannelExchange.0")
    fixture.check(exchanged_x, "inter.ChannelExchange.1")


@pytest.mark.parametrize("name", golden.names("mambadfuse-m3"))
def test_the_official_guided_fusion_is_met(name):
    fixture = golden.load(name)
    layer = load(MultiModalFusion(fixture.arguments["dim"]), fixture, "M3_block1", "deep_fusion.0.")
    a, residual, b, fused = (fixture.io[f"input.{i}"] for i in range(1, 5))
    stream = residual + fused
    with torch.no_grad():
        fixture.check(layer(stream, tuple(fixture.arguments["hw"]), b, a), "output.fusion")
    fixture.check(stream, "output.fusion_residual")


def test_exchanging_twice_gives_back_both():
    a, b = torch.randn(2, 2, 5, 7)
    first, second = exchange_channels(a, b, every=3)
    assert torch.equal(first[..., ::3], b[..., ::3]) and torch.equal(first[..., 1::3], a[..., 1::3])
    again = exchange_channels(first, second, every=3)
    assert torch.equal(again[0], a) and torch.equal(again[1], b)
    assert all(torch.equal(*v) for v in zip(exchange_channels(a, b, every=1), (b, a), strict=True))


def mixer(guides: int) -> MultiModalMixer:
    layer = MultiModalMixer(6, guides, state_size=3).double()
    layer.reset_parameters()
    return layer


@pytest.mark.parametrize("guides", [0, 1, 3])
def test_guided_fusion_is_the_sum_of_plain_mixers(guides):
    layer, inputs = mixer(guides), torch.randn(1 + guides, 2, 9, 6, dtype=torch.float64)
    nn.init.normal_(layer.guide_A_log)
    nn.init.normal_(layer.D)
    taps, biases = (v.detach().chunk(1 + guides) for v in (layer.conv1d.weight, layer.conv1d.bias))
    expected = 0
    for k, tokens in enumerate(inputs):
        plain = VisionMixer(6, 1, state_size=3).double()
        plain.load_state_dict(
            {
                "in_proj.weight": layer.in_projs[k].weight,
                "out_proj.weight": layer.out_proj.weight,
                "directions.0.conv1d.weight": taps[k],
                "directions.0.conv1d.bias": biases[k],
                "directions.0.x_proj.weight": layer.x_projs[k].weight,
                "directions.0.dt_proj.weight": layer.dt_projs[k].weight,
                "directions.0.dt_proj.bias": layer.dt_projs[k].bias,
                "directions.0.A_log": layer.guide_A_log if k else layer.A_log,
                "directions.0.D": layer.D[k],
            }
        )
        expected = expected + plain(tokens, get_scan("raster").paths(3, 3))
    assert_close("mixed", layer(*inputs), expected)


def test_later_rows_change_nothing_before_them():
    layer, inputs = mixer(2), torch.randn(3, 1, 8, 6, dtype=torch.float64)
    before = layer(*inputs)
    inputs[:, :, 5:] += 1
    after = layer(*inputs)
    assert_close("rows before", after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: exchange_channels(x, x[:, :2]), r"a has shape \(1, 4, 6\) and b \(1, 2, 6\), expected the same"),
        (lambda x: exchange_channels(x, x, every=0), "every is 0, expected 1 or more"),
        (lambda x: mixer(2)(x, x), r"guides have shapes \[\(1, 4, 6\)\], expected 2 of \(1, 4, 6\)"),
        (lambda x: MultiModalFusion(6)(x, (2, 2), x, x[:, :2]), r"\(1, 2, 6\)\], expected 2 of \(1, 4, 6\)"),
    ],
)
def test_what_does_not_fit_is_one_line(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(1, 4, 6, dtype=torch.float64))
