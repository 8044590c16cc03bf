# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from tests import golden
from tests.close import assert_close
from vlmamba.layers.fusion.channel_aware import ChannelAwareBlock
from vlmamba.layers.fusion.concat_mamba import ConcatMamba
from vlmamba.layers.fusion.cross_mamba import CrossMamba
from vlmamba.layers.maps import MapBlock
from vlmamba.layers.ss2d import SS2D
from vlmamba.models.official_maps import KEYS, rename_maps
from vlmamba.models.sigma.convert_sigma import BLOCK_KEYS, CONCAT_KEYS, CROSS_KEYS, rename_block

HEIGHT, WIDTH, CHANNELS = 3, 5, 8


def filled(block: nn.Module) -> nn.Module:
    """Of weights so large that every parameter shows in the output, in float64."""
    with torch.no_grad():
        for parameter in block.double().parameters():
            parameter.normal_(std=0.4)
    return block


def maps(count: int, batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("name", golden.names("sigma-cromb"))
def test_official_outputs_of_the_cross_block_are_met(name):
    fixture = golden.load(name)
    block = CrossMamba(fixture.arguments["hidden_dim"])
    block.load_state_dict(rename_block(fixture.weights, CROSS_KEYS))
    for ours, key in zip(block(fixture.io["input.rgb"], fixture.io["input.x"]), ("rgb", "x"), strict=True):
        fixture.check(ours, f"output.{key}")


@pytest.mark.parametrize("name", golden.names("sigma-conmb"))
def test_official_outputs_of_the_concat_block_are_met(name):
    fixture = golden.load(name)
    block = ConcatMamba(fixture.arguments["hidden_dim"])
    block.load_state_dict(rename_block(fixture.weights, CONCAT_KEYS))
    fixture.check(block(fixture.io["input.rgb"], fixture.io["input.x"]), "output.fused")


@pytest.mark.parametrize("name", golden.names("sigma-cvss"))
def test_official_outputs_of_the_channel_aware_block_are_met(name):
    fixture = golden.load(name)
    width = fixture.arguments["hidden_dim"]
    block = ChannelAwareBlock(width, SS2D(width, state_size=4)).eval()
    block.load_state_dict(rename_block(fixture.weights, BLOCK_KEYS))
    fixture.check(block(fixture.io["input.x"]), "output.x")


@pytest.mark.parametrize("name", golden.names("sigma-vss"))
def test_official_outputs_of_the_encoders_block_are_met(name):
    fixture = golden.load(name)
    width, place = fixture.arguments["hidden_dim"], "layers.0.blocks.0."
    block = MapBlock(nn.LayerNorm(width), SS2D(width)).eval()
    renamed = rename_maps({place + key: tensor for key, tensor in fixture.weights.items()}, KEYS, "")
    block.load_state_dict({key.removeprefix("encoder.stages.0.blocks.0."): v for key, v in renamed.items()})
    fixture.check(block(fixture.io["input.x"]), "output.x")


def test_each_map_is_read_with_the_other_maps_c():
    """The other map has no other way in: without its part of C's projection the maps do not meet."""
    block = filled(CrossMamba(CHANNELS, state_size=2))
    first, second, other = maps(3)
    assert not torch.allclose(block(first, second)[0], block(first, other)[0])
    with torch.no_grad():
        block.scans_x.x_proj.weight[-2:] = 0  # C of the second map
    assert torch.equal(block(first, second)[0], block(first, other)[0])
    assert not torch.allclose(block(first, second)[1], block(first, other)[1])


def test_the_cross_block_knows_no_order_of_its_maps_but_by_its_parameters():
    block, turned = (CrossMamba(CHANNELS, state_size=2).double() for _ in range(2))
    filled(block)
    weights = block.state_dict()
    pairs = {key: key.replace("_x.", ".") if "_x." in key else key.replace(".", "_x.", 1) for key in weights}
    turned.load_state_dict(
        {key: weights[key if key.startswith("conv2d") else pairs[key]] for key in turned.state_dict()}
    )
    first, second = maps(2)
    for ours, theirs in zip(block(first, second), turned(second, first)[::-1], strict=True):
        assert_close("turned", ours, theirs)


def test_each_half_is_gated_by_the_other_map():
    block = filled(ConcatMamba(CHANNELS, state_size=2, reduction=4))
    first, second = maps(2)
    seen = {}
    for name in ("gate", "gate_x"):
        getattr(block, name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, (inputs[0], output.sigmoid()))
        )
    block.out_proj.register_forward_pre_hook(lambda module, inputs: seen.__setitem__("gated", inputs[0]))
    block.norm.register_forward_hook(lambda module, inputs, output: seen.__setitem__("normed", output))
    block(first, second)
    assert_close("mean", seen["gate"][0], block.in_proj(first).mean((1, 2), keepdim=True))
    assert_close("gated", seen["gated"].chunk(2, dim=-1)[0], seen["normed"] * seen["gate_x"][1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: CrossMamba(CHANNELS, "cross_scan", state_size=2, expand=1.5),
        lambda: ConcatMamba(CHANNELS, "cross_scan", state_size=2, time_step_rank=3),
        lambda: ChannelAwareBlock(CHANNELS, SS2D(CHANNELS, state_size=2)).eval(),
    ],
    ids=["cross", "concat", "channel_aware"],
)
def test_blocks_take_any_scan_and_treat_each_image_alone(make):
    block = filled(make())
    inputs = maps(1 if isinstance(block, ChannelAwareBlock) else 2)
    outputs = block(*inputs)
    single = block(*(x[1:] for x in inputs))
    if not isinstance(outputs, tuple):
        outputs, single = (outputs,), (single,)
    for out, alone in zip(outputs, single, strict=True):
        assert out.shape == inputs[0].shape
        assert_close("alone", out[1:], alone)
    sum(out.square().sum() for out in outputs).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in block.parameters())
