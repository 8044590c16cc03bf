# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from tests.close import VALUE, assert_close
from vlmamba import VMambaConfig, VMambaForImageClassification
from vlmamba.layers.merging import MERGES, ChannelGate, VariationGatedSum, make_merge, reset_merge
from vlmamba.layers.ss2d import SS2D
from vlmamba.layers.vision_mixer import VisionMixer
from vlmamba.scans import get_scan


def random_weights(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module.double()


def test_a_channel_gate_is_its_definition():
    gate = random_weights(ChannelGate(16))
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    mean = F.layer_norm(x, (16,), gate.norm.weight, gate.norm.bias).mean(2)
    inner = F.gelu(mean @ gate.reduce.weight.T + gate.reduce.bias)
    share = (inner @ gate.expand.weight.T + gate.expand.bias).sigmoid()
    assert_close("gated", gate(x), x * share[:, :, None], VALUE)


def test_the_variation_gate_silences_what_all_orders_agree_on():
    merge = VariationGatedSum(threshold=0.5)
    y = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    spread = y - y.amin(1, keepdim=True)
    gate = (y.var(1, correction=0).sqrt() / (spread.mean(1) + 1e-5) - 0.5).clamp(min=0)
    assert_close("merged", merge(y), y.sum(1) * gate, VALUE)
    agreed = y[:, :1].expand(-1, 4, -1, -1)
    assert not merge(agreed).any()


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("scan", ["cross_scan", "es2d_step2", ("raster", "local_w2")], ids=str)
def test_every_merge_of_every_kind_of_scan_trains(merge, scan):
    torch.manual_seed(0)
    made = random_weights(SS2D(16, scan, merge, state_size=2))
    out = made(torch.randn(2, 3, 5, 16, dtype=torch.float64))
    assert out.shape == (2, 3, 5, 16) and torch.isfinite(out).all()
    out.square().sum().backward()
    assert not [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_mean_is_the_sum_over_the_number_of_orders():
    total, mean = (SS2D(8, merge=merge, out_norm="none", state_size=2) for merge in ("sum", "mean"))
    random_weights(total)
    mean.double().load_state_dict(total.state_dict())
    x = torch.randn(1, 3, 4, 8, dtype=torch.float64)
    assert_close("mean", mean(x), total(x) / 4, VALUE)


def test_disjoint_orders_are_stitched():
    """Their sum is every row's one value."""
    mixer = random_weights(SS2D(8, "es2d_step2", out_norm="none", state_size=2))
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    paths = get_scan("es2d_step2").paths(3, 4)
    apart = mixer.scans.along(x, paths, merge=False)
    for k, path in enumerate(paths):
        others = [row for row in range(12) if row not in path.tolist()]
        assert not apart[:, k, others].any()
    assert_close("stitched", mixer.scans(x, (3, 4)), apart.sum(1), VALUE)


def test_heads_scan_their_share_of_the_channels():
    scans = ["raster", "column", "raster_reversed", "column_reversed"]
    made = random_weights(SS2D(8, scans, headwise=True, state_size=2, out_norm="none"))
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    out = made.scans(x, (3, 4))
    for head, (part, expected) in enumerate(zip(x.chunk(4, -1), out.chunk(4, -1), strict=True)):
        assert_close(scans[head], made.scans.heads[head](part, (3, 4)), expected, VALUE)
    with pytest.raises(ValueError, match="scans has 3 heads, expected a divisor of the 16 channels"):
        SS2D(8, scans[:3], headwise=True)


def test_heads_are_a_choice_of_the_config():
    scans = ["mhs_c", "mhs_z", "mhs_x_diag_snake4", "mhs_s_spiral4"]
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "expand": 1, "num_labels": 3}
    config = VMambaConfig(**sizes, scan=scans, headwise=True, merge="variation_gate")
    model = VMambaForImageClassification(config)
    model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 2])).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    with pytest.raises(Exception, match="expected a list with one scan for every head"):
        VMambaConfig(**sizes, headwise=True)
    with pytest.raises(Exception, match="merge is 'product', expected one of sum, mean"):
        VMambaConfig(**sizes, merge="product")


@pytest.mark.parametrize("merge", MERGES)
def test_token_mixers_merge_too(merge):
    torch.manual_seed(0)
    mixer = random_weights(VisionMixer(16, 2, state_size=2, merge=merge))
    paths = get_scan("bidirectional").paths(1, 6)
    out = mixer(torch.randn(2, 6, 16, dtype=torch.float64), paths)
    out.square().sum().backward()
    assert out.shape == (2, 6, 16)
    assert not [name for name, p in mixer.named_parameters() if p.grad is None or not p.grad.any()]


def test_an_unknown_merge_is_named_and_orders_begin_alike():
    with pytest.raises(ValueError, match="merge is 'product', expected one of sum"):
        make_merge("product", 8, 2)
    merge = make_merge("softmax", 16, 3)
    reset_merge(merge)
    shares = merge.weights.softmax(0)
    assert shares.max() - shares.min() < 0.01
