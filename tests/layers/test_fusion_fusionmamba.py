# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import golden
from tests.close import VALUE, assert_close
from vlmamba.layers.fusion.channel_attention import EfficientChannelAttention
from vlmamba.layers.fusion.descriptive_convolution import LearnableDescriptiveConvolution
from vlmamba.layers.fusion.dynamic_features import (
    DynamicFusion,
    DynamicMixer,
    FeatureEnhancement,
    JointSS2D,
    difference_gate,
)
from vlmamba.layers.maps import MLP, MapBlock
from vlmamba.layers.ss2d import SS2D
from vlmamba.models.fusionmamba.convert_fusionmamba import rename

BLOCK, FUSION = ("layers.0.blocks.0.", "stages.0.blocks.0."), ("Cross_block.1.", "fusions.0.")


def block(channels: int) -> MapBlock:
    norms = nn.LayerNorm(channels), nn.LayerNorm(channels)
    return MapBlock(norms[0], DynamicMixer(channels, scan="es2d_step2"), norms[1], MLP(channels, 4.0))


# fixture -> our layer, and where in the official model and in ours it has its place
LAYERS = {
    "fusionmamba-cross": (DynamicFusion, FUSION),
    "fusionmamba-dvss": (block, BLOCK),
    "fusionmamba-es2d": (
        lambda channels: SS2D(channels, "es2d_step2"),
        tuple(p + s for p, s in zip(BLOCK, ("op.", "mixer.scan_branch."), strict=True)),
    ),
    "fusionmamba-ldc": (
        LearnableDescriptiveConvolution,
        tuple(p + s for p, s in zip(BLOCK, ("conv_branch.", "mixer.conv_branch."), strict=True)),
    ),
}


def official(name: str) -> tuple[golden.Golden, nn.Module]:
    """A fixture, and our layer of its weights."""
    fixture = golden.load(name)
    make, (theirs, ours) = LAYERS[name]
    layer = make(fixture.arguments["hidden_dim"])
    renamed = rename({theirs + key: v for key, v in fixture.weights.items()}, None, "image-fusion")
    layer.load_state_dict({key.removeprefix(ours): v for key, v in renamed.items()})
    return fixture, layer.eval()


def random_weights(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.4)
    return layer.double()


def maps(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, *shape, dtype=torch.float64).unbind()


@pytest.mark.parametrize("name", [name for name in golden.names("fusionmamba-") if name in LAYERS])
def test_official_layers_are_met(name):
    fixture, layer = official(name)
    inputs = [fixture.io[key] for key in ("input.1", "input.2") if key in fixture.io]
    if name.endswith("ldc"):
        inputs = [x.permute(0, 2, 3, 1) for x in inputs]
    with torch.no_grad():
        out = layer(*inputs)
    fixture.check(out.permute(0, 3, 1, 2) if name.endswith("ldc") else out, "output")


@pytest.mark.parametrize("name", golden.names("fusionmamba-cross"))
def test_the_official_parts_of_a_fusion_are_met(name):
    fixture, layer = official(name)
    a, b = fixture.io["input.1"], fixture.io["input.2"]
    with torch.no_grad():
        enhanced = layer.enhancement(a, b)
        found = {
            "inter.Cross_layer.texture_enhance1": layer.enhancement.texture(a),
            "inter.Cross_layer.Diff_enhance.0": difference_gate(a, b),
            "inter.Cross_layer.Diff_enhance.1": difference_gate(b, a),
            "inter.Cross_layer.0": enhanced[0],
            "inter.Cross_layer.1": enhanced[1],
        }
        for key, ours in found.items():
            fixture.check(ours.permute(0, 3, 1, 2), key)
        fixture.check(layer.mixer(layer.norm(enhanced[0]), layer.norm_x(enhanced[1])), "inter.self_attention_cross")


def test_a_descriptive_convolution_is_its_definition():
    layer = random_weights(LearnableDescriptiveConvolution(3))
    x, _ = maps(2, 4, 5, 3)
    kernel = layer.conv.weight.clone()
    for o in range(3):
        for i in range(3):
            mask = layer.base_mask[o, i].clone()
            mask[1, 1] -= layer.learnable_theta[0] * layer.learnable_mask[o, i] * layer.conv.weight[o, i].sum()
            kernel[o, i] = layer.conv.weight[o, i] * mask
    expected = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=1)
    assert_close("textures", layer(x).permute(0, 3, 1, 2), expected, VALUE)


def test_a_descriptive_convolution_begins_finite_and_does_not_train_its_base():
    layer = LearnableDescriptiveConvolution(4)
    layer.reset_parameters()
    layer(torch.randn(1, 3, 3, 4)).sum().backward()
    trained = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert trained == {"conv.weight", "learnable_mask", "learnable_theta"}


def test_efficient_attention_reads_the_neighbouring_channels():
    layer = random_weights(EfficientChannelAttention())
    x, _ = maps(2, 3, 4, 6)
    mean = F.pad(x.mean((1, 2)), (1, 1))
    weight = layer.conv.weight[0, 0]
    gate = sum(weight[k] * mean[:, k : k + 6] for k in range(3)).sigmoid()
    assert_close("attended", layer(x), x * gate[:, None, None], VALUE)


def test_equal_maps_are_enhanced_by_half_of_their_sum():
    x, _ = maps(2, 3, 4, 6)
    assert_close("twice", difference_gate(x, x), 2 * x, VALUE)


@pytest.mark.parametrize("own_gates", [False, True])
def test_the_joint_scan_is_gated_by_both(own_gates):
    layer = random_weights(JointSS2D(6, own_gates=own_gates, state_size=2))
    a, b = maps(2, 3, 5, 6)
    x1, z1 = (a @ layer.in_proj.weight.T).chunk(2, -1)
    x2 = b @ layer.in_proj_x.weight.T
    x2, z2 = x2.chunk(2, -1) if own_gates else (x2, F.silu(z1))
    x1, x2 = (F.silu(layer.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1) for x in (x1, x2))
    y = layer.out_norm(layer.scans((x1 * x2 + x1 + x2).flatten(1, 2), (3, 5))).unflatten(1, (3, 5))
    assert_close("fused", layer(a, b), (y * F.silu(z1) + y * F.silu(z2)) @ layer.out_proj.weight.T, VALUE)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 4), (4, 4)], ids=str)
@pytest.mark.parametrize("scan", ["es2d_step2", "cross_scan"])
def test_maps_of_any_grid_are_fused_pair_by_pair(scan, grid):
    layer = random_weights(DynamicFusion(8, scan=scan, state_size=2))
    a, b = maps(3, *grid, 8)
    out = layer(a, b)
    assert out.shape == a.shape
    assert_close("alone", out[1:2], layer(a[1:2], b[1:2]), VALUE)


def test_every_trained_parameter_of_an_enhancement_matters():
    layer = random_weights(FeatureEnhancement(4))
    a, b = maps(1, 3, 3, 4)
    sum((out**2).sum() for out in layer(a, b)).backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) or name.endswith("base_mask")
