# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vlmamba.layers.plain_mixer import PlainMixer
from vlmamba.ops import selective_scan
from vlmamba.scans import get_scan

GRID = (3, 4)


def mixer(**options) -> PlainMixer:
    """Of weights so large that every parameter shows in the output."""
    made = PlainMixer(8, state_size=3, conv_kernel=3, **options).double()
    made.reset_parameters(std=0.5)
    with torch.no_grad():
        made.dt_proj.bias.normal_()
    return made


def one_order_after_another(made: PlainMixer, hidden: torch.Tensor, order: torch.Tensor, labels: torch.Tensor):
    """What one order adds before the gate, by the words of the paper: permute, scan, permute back."""
    x = made.in_proj(hidden).chunk(2, dim=-1)[0]
    image = x.unflatten(1, GRID).permute(0, 3, 1, 2)
    x = torch.nn.functional.silu(made.conv2d(image)).flatten(2).transpose(1, 2)
    dt, B, C = made.x_proj(x).split(made.splits, dim=-1)
    dt = made.dt_proj(dt)
    if made.permute_inputs:
        dt, B, C = dt[:, order], B[:, order], C[:, order]
    bias = made.dt_proj.bias if made.double_time_step_bias else None
    if made.move_embeddings is not None:
        B = B + made.move_embeddings[labels]
    y = selective_scan(x[:, order], dt, -made.A_log.exp(), B, C, made.D, dt_bias=bias)
    return torch.zeros_like(y).index_copy(1, order, y)


@pytest.mark.parametrize("permute_inputs", [True, False])
@pytest.mark.parametrize("double_time_step_bias", [True, False])
@pytest.mark.parametrize("move_embeddings", [True, False])
def test_tables_do_what_permuted_copies_do(permute_inputs, double_time_step_bias, move_embeddings):
    made = mixer(
        permute_inputs=permute_inputs, double_time_step_bias=double_time_step_bias, move_embeddings=move_embeddings
    )
    hidden = torch.randn(2, 12, 8, dtype=torch.float64)
    orders = get_scan("plainmamba4").paths(*GRID).long()
    labels = get_scan("plainmamba4_directions").paths(*GRID).long()
    parts = zip(orders, labels, strict=True)
    total = sum(one_order_after_another(made, hidden, order, moves) for order, moves in parts)
    z = made.in_proj(hidden).chunk(2, dim=-1)[1]
    expected = made.out_proj(total * torch.nn.functional.silu(z))
    torch.testing.assert_close(made(hidden, GRID), expected)


def test_every_parameter_learns():
    made = mixer(layer_scale=0.5)
    made(torch.randn(2, 12, 8, dtype=torch.float64), GRID).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())


def test_a_hook_on_the_time_steps_acts_on_the_bias_that_is_added_again():
    made = mixer()
    hidden = torch.randn(1, 12, 8, dtype=torch.float64)
    calls = []
    made.dt_proj.register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    made(hidden, GRID)
    assert calls == [(1, 12, 16), (1, 16)]
