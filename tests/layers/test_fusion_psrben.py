# SPDX-License-Identifier: Apache-2.0
"""Maps that steer each other's scans, and the gate over bands, as the pansharpening FusionMamba has them."""

import pytest
import torch
from torch import nn

from tests import golden
from tests.close import assert_close
from vlmamba.layers.fusion.dual_input import DualInputFusion, SteeredMixer
from vlmamba.layers.fusion.spectral_attention import SpectralAttention
from vlmamba.models.psrben import PSRBenConfig
from vlmamba.models.psrben.convert_psrben import rename
from vlmamba.ops import selective_scan
from vlmamba.scans import get_scan


def mixer(steered: bool, paths: int = 2, **sizes: int) -> SteeredMixer:
    layer = SteeredMixer(6, paths, steered, state_size=3, **sizes).double()
    layer.reset_parameters()
    for direction in layer.directions:
        nn.init.normal_(direction.D)
    return layer


def block(**changes) -> DualInputFusion:
    layer = DualInputFusion(6, state_size=3, **changes).double()
    layer.reset_parameters()
    return layer


@pytest.mark.parametrize("name", golden.names("psrben-fmblock"))
def test_the_official_block_is_met(name):
    fixture = golden.load(name)
    layer = DualInputFusion(fixture.arguments["dim"], fixture.arguments["depth"], fixture.arguments["final"])
    renamed = rename({f"stage0.fm.{key}": v for key, v in fixture.weights.items()}, PSRBenConfig())
    layer.load_state_dict({key.removeprefix("stages.0."): v for key, v in renamed.items()})
    seen = {}
    for part in ("layers.0", "layers_x.0", "layers_x.0.mixer", "cross", "cross_x", "cross_x.mixer", "out_proj"):
        layer.get_submodule(part).register_forward_hook(lambda _, __, out, part=part: seen.update({part: out}))
    with torch.no_grad():
        spectral, spatial = layer(*(fixture.io[f"input.{key}"].permute(0, 2, 3, 1) for key in ("ms", "pan")))
    fixture.check(spectral.permute(0, 3, 1, 2), "output.ms")
    fixture.check(spatial.permute(0, 3, 1, 2), "output.pan")
    fixture.check(seen["layers.0"], "inter.spe_mamba_layers.0")
    fixture.check(seen["layers_x.0"], "inter.spa_mamba_layers.0")
    fixture.check(seen["layers_x.0.mixer"], "inter.spa_mamba_layers.0.block")
    fixture.check(seen["cross"], "inter.spe_cross_mamba")
    fixture.check(seen["cross_x"], "inter.spa_cross_mamba")
    fixture.check(seen["cross_x.mixer"], "inter.spa_cross_mamba.block")
    fixture.check(seen["out_proj"], "inter.out_proj")


@pytest.mark.parametrize("steered", [False, True])
def test_a_mixer_is_the_mean_of_gated_scans(steered):
    layer = mixer(steered, expand=2, time_step_rank=2)
    x, other = torch.randn(2, 2, 12, 6, dtype=torch.float64)
    paths = get_scan("bidirectional").paths(3, 4)
    rows, gate = layer.in_proj(x).chunk(2, dim=-1)
    expected = 0
    for direction, path in zip(layer.directions, paths.long(), strict=True):
        along = direction.conv1d(rows[:, path].transpose(1, 2))[..., :12].transpose(1, 2)
        along = nn.functional.silu(along)
        dt, B, C = direction.project(layer.in_proj_x(other)[:, path] if steered else along)
        y = selective_scan(along, dt, -direction.A_log.exp(), B, C, direction.D)
        expected = expected + torch.empty_like(y).index_copy(1, path, y) * nn.functional.silu(gate)
    expected = layer.out_proj(layer.norm(expected / 2))
    assert_close("mixed", layer(x, paths, other if steered else None), expected)


def test_what_steers_has_no_content_of_its_own():
    layer = mixer(True)
    x, other = torch.zeros(1, 9, 6).double(), torch.randn(1, 9, 6).double()
    for direction in layer.directions:
        nn.init.zeros_(direction.conv1d.bias)
    paths = get_scan("bidirectional").paths(3, 3)
    assert torch.equal(layer(x, paths, other), layer(x, paths, 2 * other))


def test_blocks_treat_both_maps_alike():
    layer, maps = block(depth=2), torch.randn(2, 2, 3, 5, 6, dtype=torch.float64)
    exchanged = block(depth=2)
    pairs = {"layers.": "layers_x.", "layers_x.": "layers.", "cross.": "cross_x.", "cross_x.": "cross."}

    def other(key: str) -> str:
        first, dot, rest = key.partition(".")
        return pairs.get(first + dot, first + dot) + rest

    exchanged.load_state_dict({other(key): v for key, v in layer.state_dict().items()})
    for ours, theirs in zip(layer(maps[0], maps[1]), exchanged(maps[1], maps[0])[::-1], strict=True):
        assert_close("map", theirs, ours)


def test_a_final_block_gives_what_the_others_average():
    layer, maps = block(), torch.randn(2, 1, 4, 3, 6, dtype=torch.float64)
    first, second = layer(*maps)
    layer.final = True
    fused = layer(*maps)
    paths = get_scan("cross_scan").paths(4, 3)
    for given, own, x in ((first, layer.layers[0], maps[0]), (second, layer.layers_x[0], maps[1])):
        assert_close("map", given, (own(x.flatten(1, 2), paths).unflatten(1, (4, 3)) + fused) / 2)


def test_bands_are_gated_by_their_largest_values_alone():
    layer = SpectralAttention(8, state_size=3).double()
    layer.reset_parameters()
    image = torch.rand(2, 5, 4, 6, dtype=torch.float64)
    gate = layer(image)
    assert gate.shape == (2, 5, 1, 1) and ((gate > 0) & (gate < 1)).all()
    assert_close("gate", layer(image.amax((2, 3), keepdim=True)), gate)
    changed = image.clone()
    changed[:, -1] += 1
    assert (layer(changed) != gate).all()  # the scans run both ways


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda x: block()(x, x[:, :1]),
            r"first has shape \(1, 2, 2, 6\) and second \(1, 1, 2, 6\), expected the same",
        ),
        (lambda x: mixer(True)(x[0], None), r"other has shape None, expected \(2, 2, 6\)"),
        (lambda x: mixer(False)(x[0], None, x[0]), r"other has shape \(2, 2, 6\), expected None"),
        (lambda x: mixer(True)(x[0], None, x[0, :1]), r"other has shape \(1, 2, 6\), expected \(2, 2, 6\)"),
    ],
)
def test_what_does_not_fit_is_one_line(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(1, 2, 2, 6, dtype=torch.float64))
