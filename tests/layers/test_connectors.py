# SPDX-License-Identifier: Apache-2.0
"""Connectors that do not scan: Cobra's projectors as the official code computes them, and at other sizes."""

import pytest
import torch

from tests import golden
from tests.close import assert_close
from vlmamba import VLMambaConfig
from vlmamba.layers.connectors import CONNECTORS
from vlmamba.models.vlmamba.convert_cobra import PROJECTORS, rename

WITHOUT_SCAN = sorted(PROJECTORS.values())


def connector(kind: str, *sizes: int, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return CONNECTORS[kind](*sizes, **options).double()


@pytest.mark.parametrize("name", golden.names("cobra-proj-"))
def test_official_projectors_are_met(name):
    fixture = golden.load(name)
    sizes = fixture.arguments
    ours = CONNECTORS[PROJECTORS[sizes["mlp_type"]]](sizes["vision_dim"], sizes["llm_dim"])
    official = {f"projector.{key}": tensor for key, tensor in fixture.weights.items()}
    renamed = rename(official, VLMambaConfig())
    ours.load_state_dict({key.split(".connector.")[1]: tensor for key, tensor in renamed.items()})
    patches = fixture.io["input.patches"]
    side = round(patches.shape[1] ** 0.5)
    fixture.check(ours(patches, (side, side)), "output")


@pytest.mark.parametrize("kind", WITHOUT_SCAN)
def test_every_parameter_learns(kind):
    ours = connector(kind, 6, 10, pool_size=3)
    features = torch.randn(2, 20, 6, dtype=torch.float64, requires_grad=True)
    ours(features, (4, 5)).square().sum().backward()
    assert features.grad.abs().min() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in ours.parameters())


@pytest.mark.parametrize("grid", [(4, 6), (7, 3), (2, 2), (1, 5)])
@pytest.mark.parametrize("kind", ["ldp", "fused_ldp"])
def test_any_grid_is_pooled_to_the_same_size(kind, grid):
    """Cell i of n averages rows floor(i * h / n) up to ceil((i + 1) * h / n), for any h."""
    ours, size = connector(kind, 6, 10, pool_size=3), 3
    features = torch.randn(2, grid[0] * grid[1], 6, dtype=torch.float64)
    maps = ours.linear_2(torch.nn.functional.gelu(ours.linear_1(features))).unflatten(1, grid)

    def cut(i: int, length: int) -> slice:
        return slice(i * length // size, -(-(i + 1) * length // size))

    pooled = torch.stack(
        [maps[:, cut(i, grid[0]), cut(j, grid[1])].mean((1, 2)) for i in range(size) for j in range(size)], 1
    )
    kernel = ours.position.weight[:, 0]  # [10, 3, 3]
    padded = torch.nn.functional.pad(pooled.unflatten(1, (size, size)), (0, 0, 1, 1, 1, 1))
    expected = pooled + ours.position.bias
    for i in range(3):
        for j in range(3):
            expected = expected + padded[:, i : i + size, j : j + size].flatten(1, 2) * kernel[:, i, j]
    assert_close(kind, ours(features, grid), expected)


def test_the_fused_ones_widen_four_times():
    assert connector("fused_mlp", 6, 10).linear_1.out_features == 24
    assert connector("fused_ldp", 6, 10).linear_1.out_features == 24
    assert connector("ldp", 6, 10).linear_1.out_features == 10
