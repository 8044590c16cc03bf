# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan under mamba_ssm's names: what its own code computed, and its options."""

import pytest
import torch

from tests import golden
from tests.close import assert_close
from tests.ops.backends import DOUBLE
from tests.ops.ssd_cases import Case
from vlmamba.ops import selective_state_update, ssd_scan, use_backend
from vlmamba.ops.compat import mamba_chunk_scan_combined
from vlmamba.ops.compat import selective_state_update as compat_state_update

GOLDEN = golden.load("ssd-scan")


@pytest.mark.parametrize("backend", DOUBLE)
@pytest.mark.parametrize("case", [case["name"] for case in GOLDEN.config["cases"]])
def test_drop_in_equals_mamba_ssm(backend, case):
    io = {key.split("/")[1]: v for key, v in GOLDEN.io.items() if key.startswith(f"{case}/")}
    options = next(c for c in GOLDEN.config["cases"] if c["name"] == case)
    inputs = {n: io[n].clone().requires_grad_() for n in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias") if n in io}
    with use_backend(backend):
        out, last = mamba_chunk_scan_combined(
            **inputs,
            chunk_size=options["chunk_size_hint"],
            dt_softplus=options["dt_softplus"],
            dt_limit=tuple(map(float, options["dt_limit"])),
            return_final_states=True,
        )
    gradients = torch.autograd.grad((out * io["grad_out"]).sum(), list(inputs.values()))
    assert_golden("out", out, io["out"])
    assert_golden("final_state", last, io["final_state"])
    for name, gradient in zip(inputs, gradients, strict=True):
        assert_golden(f"d{name}", gradient, io[f"d{name}"])


@pytest.mark.parametrize("initial", [False, True])
def test_listing_1_of_the_paper_is_met(initial):
    """There A and x come multiplied by dt: with dt = 1 and A = -1, a time step of -A would scale x too."""
    io = {key.split("/")[1]: v for key, v in GOLDEN.io.items() if key.startswith("minimal/")}
    steps = -io["A"]
    y, last = ssd_scan(
        io["X"] / steps.unsqueeze(-1),
        steps,
        -torch.ones(io["A"].shape[-1], dtype=torch.float64),
        io["B"],
        io["C"],
        dt_softplus=False,
        initial_state=io["initial_states"][:, 0] if initial else None,
        return_final_state=True,
    )
    suffix = "_init" if initial else ""
    assert_golden("Y", y, io[f"Y{suffix}"])
    assert_golden("final_state", last, io[f"final_state{suffix}"])


def assert_golden(name: str, ours: torch.Tensor, expected: torch.Tensor) -> None:
    """The pass rule of the op fixtures: float64 within 1e-9."""
    assert (ours - expected).abs().max() <= 1e-9 * max(1.0, expected.abs().max().item()), name


def test_drop_in_gives_the_state_after_every_packed_sequence():
    tensors = Case(30, batch=1, options=("dt_bias",)).tensors()
    bounds = torch.tensor([0, 9, 23, 30])
    seq_idx = torch.tensor([[0] * 9 + [1] * 14 + [2] * 7], dtype=torch.int32)
    first = torch.randn(1, 4, 5, 7, dtype=torch.float64)
    options = {"chunk_size": 8, "seq_idx": seq_idx, "initial_states": first, "dt_softplus": True}
    y, last, states = mamba_chunk_scan_combined(
        **tensors, **options, cu_seqlens=bounds, return_final_states=True, return_varlen_states=True
    )
    assert states.shape == (3, 4, 5, 7) and torch.equal(y, mamba_chunk_scan_combined(**tensors, **options))
    assert_close("last", states[-1:], last)
    part = {n: v[:, :9] if n in ("x", "dt", "B", "C") else v for n, v in tensors.items()}
    assert_close("first", states[:1], ssd_scan(**part, initial_state=first, return_final_state=True)[1])
    y, states = mamba_chunk_scan_combined(**tensors, **options, cu_seqlens=bounds, return_varlen_states=True)
    assert states.shape == (3, 4, 5, 7)
    with pytest.raises(ValueError, match="cu_seqlens is None"):
        mamba_chunk_scan_combined(**tensors, chunk_size=8, return_varlen_states=True)
    with pytest.raises(ValueError, match=r"cu_seqlens is \[0, 9\]"):
        mamba_chunk_scan_combined(**tensors, chunk_size=8, cu_seqlens=bounds[:2], return_varlen_states=True)


@pytest.mark.parametrize("tied", [False, True])
def test_drop_in_step_with_heads(tied):
    heads, size, groups, states = 4, 3, 2, 5
    x, z = torch.randn(2, 2, heads, size)
    B, C = torch.randn(2, 2, groups, states)
    D = torch.randn(heads, size)
    if tied:
        A = -torch.rand(heads)[:, None, None].expand(-1, size, states)
        dt, bias = torch.randn(2, heads, 1).expand(-1, -1, size), torch.randn(heads, 1).expand(-1, size)
    else:
        A, dt, bias = -torch.rand(heads, size, states), torch.randn(2, heads, size), torch.randn(heads, size)
    before = torch.randn(2, heads, size, states)
    state = before.clone()
    y = compat_state_update(state, x, dt, A, B, C, D, z, bias, dt_softplus=True)
    for head in range(heads):
        group = head // (heads // groups)
        one = (before[:, head], x[:, head], dt[:, head], A[head], B[:, group], C[:, group], D[head], z[:, head])
        expected, new = selective_state_update(*one, bias[head])
        assert_close("y", y[:, head], expected)
        assert_close("state", state[:, head], new)
    with pytest.raises(ValueError, match="dt has shape"):
        compat_state_update(state, x, dt[..., 0], A, B, C)
