# SPDX-License-Identifier: Apache-2.0
"""Random path tables: any rows, in any order, any number of times, padded steps between them."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.close import GRADIENT, VALUE, assert_close, assert_no_worse_than_torch
from tests.ops.backends import AVAILABLE
from vlmamba.ops import causal_conv1d, selective_scan, use_backend
from vlmamba.ops.paths import path_facts

FAST = [name for name in AVAILABLE if name != "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def calls(draw) -> dict:
    """Float64 tensors of one call and its table."""
    batch, length, channels, size = (draw(st.integers(1, most)) for most in (3, 70, 20, 9))
    directions, steps = draw(st.integers(1, 3)), draw(st.integers(1, 140))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    low = draw(st.sampled_from([-1, 0]))
    shape = (batch, directions, length)
    paths = torch.randint(low, length, (directions, steps))
    if draw(st.booleans()):
        paths = torch.stack([torch.randperm(length) for _ in range(directions)])
    return {
        "x": torch.randn(batch, length, channels) if draw(st.booleans()) else torch.randn(*shape, channels),
        "dt": torch.randn(*shape, channels) - 1,
        "A": -4 * torch.rand(directions, channels, size) - 0.02,
        "B": torch.randn(*shape, size),
        "C": torch.randn(batch, length, size) if draw(st.booleans()) else torch.randn(*shape, size),
        "D": torch.randn(directions, channels),
        "z": torch.randn(batch, length, channels),
        "dt_bias": torch.randn(directions, channels),
        "initial_state": torch.randn(batch, directions, channels, size),
        "paths": paths.int(),
        "merge": draw(st.booleans()),
    }


def run(backend: str, call: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output, last state and all gradients, for fixed cotangents."""
    leaves = {n: v.to(dtype).requires_grad_() for n, v in call.items() if n not in ("paths", "merge")}
    with use_backend(backend):
        y, state = selective_scan(**leaves, paths=call["paths"], merge=call["merge"], return_final_state=True)
    generator = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=generator).to(v.dtype)).sum() for v in (y, state))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"y": y, "state": state, **{f"d{n}": g for n, g in zip(leaves, gradients, strict=True)}}


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls())
def test_any_table_is_followed(backend, poisoned_memory, call):
    expected = run(
        "reference", {n: v.double() if n not in ("paths", "merge") else v for n, v in call.items()}, torch.float64
    )
    for name, ours in run(backend, call, torch.float32).items():
        assert_close(name, ours, expected[name], GRADIENT if name.startswith("d") else VALUE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", [name for name in FAST if name != "torch"])
@settings(max_examples=15, deadline=None)
@given(call=calls())
def test_no_backend_is_less_exact_than_plain_pytorch(backend, dtype, call):
    rounded = {n: v if n in ("paths", "merge") else v.to(dtype) for n, v in call.items()}
    exact = run(
        "reference", {n: v if n in ("paths", "merge") else v.double() for n, v in rounded.items()}, torch.float64
    )
    plain, ours = (run(name, rounded, dtype) for name in ("torch", backend))
    for name, value in ours.items():
        assert_no_worse_than_torch(name, value, plain[name], exact[name])


@pytest.mark.parametrize("backend", AVAILABLE)
def test_renaming_the_rows_changes_nothing(backend):
    """Rows in another order in memory, and a table that finds them there."""
    torch.manual_seed(0)
    x, dt, B, C = (torch.randn(2, 30, width) for width in (5, 5, 3, 3))
    A, order = -torch.rand(5, 3), torch.randperm(30)
    place = order.argsort()
    with use_backend(backend):
        plain = selective_scan(x, dt, A, B, C)
        moved = selective_scan(*(v[:, order] for v in (x, dt)), A, *(v[:, order] for v in (B, C)), paths=place)
        convolved = causal_conv1d(x, torch.ones(5, 3))
        assert torch.equal(causal_conv1d(x[:, order], torch.ones(5, 3), paths=place), convolved[:, order])
    assert torch.equal(moved, plain[:, order])


def test_a_table_changed_in_place_is_read_again():
    paths = torch.arange(9).int().unsqueeze(0)
    x, B, A = torch.randn(1, 9, 4), torch.randn(1, 9, 2), -torch.rand(1, 4, 2)
    first = selective_scan(x, x, A, B, B, paths=paths)
    assert path_facts(paths, 9).complete
    paths[0, 3] = 4
    assert not path_facts(paths, 9).unique
    second = selective_scan(x, x, A, B, B, paths=paths)
    assert not torch.equal(first, second) and not second[0, 3].any()
    paths[0, 3] = 9
    with pytest.raises(ValueError, match="paths has rows from 0 to 9, expected -1 to 8"):
        selective_scan(x, x, A, B, B, paths=paths)


def test_a_compiled_graph_refuses_rows_out_of_bounds():
    """The values are looked at when the graph runs."""
    x, B, A = torch.randn(1, 9, 4), torch.randn(1, 9, 2), -torch.rand(1, 4, 2)
    compiled = torch.compile(lambda paths: selective_scan(x, x, A, B, B, paths=paths), backend="eager", fullgraph=True)
    good = torch.arange(9).int().unsqueeze(0)
    assert torch.equal(compiled(good), selective_scan(x, x, A, B, B))
    if "native" in AVAILABLE:
        with pytest.raises(ValueError, match="paths has rows from 0 to 99"):
            compiled(torch.where(good == 3, 99, good))
