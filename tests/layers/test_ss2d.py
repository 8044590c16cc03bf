# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tests.close import VALUE, assert_close
from vlmamba.layers.ss2d import OUT_NORMS, SS2D
from vlmamba.ops import selective_scan, use_backend
from vlmamba.scans import get_scan

HEIGHT, WIDTH, CHANNELS = 3, 5, 12


def mixer(**options) -> SS2D:
    """Of weights so large that every parameter shows in the output."""
    made = SS2D(8, state_size=2, expand=CHANNELS / 8, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.4)
    return made


def one_direction(made: SS2D, k: int, x: torch.Tensor) -> torch.Tensor:
    """The scan of direction k over sequences `[B, T, D]` in their order, every projection of what is read."""
    rank, size, _ = made.scans.splits
    weight = made.scans.x_proj.weight.unflatten(0, (-1, rank + 2 * size))[k]
    dt, B, C = (x @ weight.T).split(made.scans.splits, dim=-1)
    dt = dt @ made.scans.dt_projs[k].weight.T + made.scans.dt_projs[k].bias
    with use_backend("reference"):
        return selective_scan(x, dt, -made.scans.A_log[k].exp(), B, C, made.scans.D[k])


def plainly(made: SS2D, x: torch.Tensor) -> torch.Tensor:
    """What `SS2D.scan` is to give for a map, by sequences that are cut out and put back."""
    if not made.cascade:
        orders = get_scan(made.scans.scan).paths(HEIGHT, WIDTH).long()
        rows, total = x.flatten(1, 2), torch.zeros_like(x.flatten(1, 2))
        for k, order in enumerate(orders):
            total = total.index_add(1, order, one_direction(made, k, rows[:, order]))
        return total.view_as(x)
    for forth, back in ((0, 2), (1, 3)):  # rows, then columns, the map turned; the way back stays mirrored
        lines = F.layer_norm(x, x.shape[-1:]).flatten(0, 1)
        y = one_direction(made, forth, lines) + one_direction(made, back, lines.flip(1))
        x = y.view_as(x).transpose(1, 2)
    return x


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scan": "cross_scan_unidi", "gate": "linear"},
        {"scan": "cross_scan_bidi", "gate": "none", "activate_output": True},
        {"scan": "cross_scan_rot90", "conv_kernel": 1},
        {"scan": "bidirectional", "conv_bias": False, "conv_kernel": 5},
        {"cascade": True},
    ],
    ids=str,
)
def test_it_is_its_definition(options):
    made = mixer(**options)
    x = torch.randn(2, HEIGHT, WIDTH, 8, dtype=torch.float64)
    inner, gate = made.in_proj(x), 1.0
    if options.get("gate") != "none":
        inner, gate = inner.chunk(2, dim=-1)
        gate = gate if options.get("gate") == "linear" else F.silu(gate)
    if options.get("conv_kernel") != 1:
        side = options.get("conv_kernel", 3)
        weight, bias = made.conv2d.weight, made.conv2d.bias
        convolved = F.conv2d(inner.movedim(-1, 1), weight, bias, padding=side // 2, groups=CHANNELS)
        inner = convolved.movedim(1, -1)
    y = made.out_norm(plainly(made, F.silu(inner)))
    y = F.gelu(y) if options.get("activate_output") else y
    assert_close("map", made(x), made.out_proj(y * gate), VALUE)


@pytest.mark.parametrize("out_norm", OUT_NORMS)
def test_every_norm_after_the_scan_trains_and_the_batch_stays_apart(out_norm):
    made = mixer(out_norm=out_norm)
    x = torch.randn(2, HEIGHT, WIDTH, 8, dtype=torch.float64)
    out = made(x)
    assert_close("second of the batch", made(x[1:]), out[1:], VALUE)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_softmax_is_over_the_positions():
    made = mixer(out_norm="softmax")
    total = made._normed(torch.randn(2, HEIGHT, WIDTH, CHANNELS, dtype=torch.float64)).sum((1, 2))
    assert_close("sum", total, torch.ones_like(total), VALUE)


@pytest.mark.parametrize("initialization", ["mamba", "normal", "uniform"])
def test_initialisations_are_the_published_ones(initialization):
    made = SS2D(64, state_size=3)
    made.reset_parameters(initialization)
    dt = torch.stack([F.softplus(project.bias) for project in made.scans.dt_projs])
    if initialization == "mamba":
        assert torch.equal(made.scans.A_log.exp().round(), torch.tensor([1.0, 2.0, 3.0]).expand_as(made.scans.A_log))
        assert dt.min() > 0.99e-3 and dt.max() < 0.101
    else:
        assert made.scans.A_log.any() == (initialization == "normal")
        weights = torch.cat([project.weight.flatten() for project in made.scans.dt_projs])
        assert (weights.min() < 0) == (initialization == "normal") and weights.abs().max() < 1
    assert torch.equal(made.scans.D, torch.ones(4, 128))


def test_lora_acts_on_every_projection():
    made = mixer()
    x = torch.randn(1, HEIGHT, WIDTH, 8, dtype=torch.float64)
    before = made(x)
    names = [name for name, module in made.named_modules() if isinstance(module, nn.Linear)]
    assert names == ["in_proj", "scans.x_proj", *(f"scans.dt_projs.{k}" for k in range(4)), "out_proj"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=names, init_lora_weights=False), made)
    out = made.double()(x)
    assert not torch.allclose(out, before)
    out.square().sum().backward()
    adapters = [p for n, p in made.named_parameters() if "lora_" in n]
    assert len(adapters) == 2 * len(names) and all(p.grad is not None and p.grad.any() for p in adapters)


def test_a_cascade_of_another_scan_is_named():
    with pytest.raises(ValueError, match="scan is 'bidirectional' and merge 'sum', expected 'cross_scan'"):
        SS2D(8, "bidirectional", cascade=True)
