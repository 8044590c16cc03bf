# SPDX-License-Identifier: Apache-2.0
"""Operands of different dtypes in one call, whichever has which; tensors without memory; packed sequences' numbers."""

import pytest
import torch

from tests.close import assert_close
from tests.ops.backends import AVAILABLE
from tests.ops.scan_cases import Case
from vlmamba.ops import causal_conv1d, selective_scan, selective_state_update, ssd_scan, ssd_update, use_backend

SINGLE = torch.float32
OTHERS = [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


def scan_call() -> tuple:
    tensors = Case(20).tensors()
    return selective_scan, tensors


def step_call() -> tuple:
    tensors = Case(1).tensors()
    rows = {n: tensors[n][:, 0, 0] if n != "z" else tensors[n][:, 0] for n in ("x", "dt", "B", "C", "z")}
    rest = {n: tensors[n][0] for n in ("A", "D", "dt_bias")}
    return selective_state_update, {"state": tensors["initial_state"][:, 0], **rows, **rest}


def conv_call() -> tuple:
    shapes = {"x": (2, 20, 5), "weight": (5, 4), "bias": (5,), "initial_state": (2, 5, 3)}
    return causal_conv1d, {n: torch.randn(*shape, dtype=torch.float64) for n, shape in shapes.items()}


def ssd_tensors(*leading: int) -> dict[str, torch.Tensor]:
    shapes = {"x": (2, 4), "dt": (2,), "B": (1, 3), "C": (1, 3), "z": (2, 4)}
    made = {n: torch.randn(*leading, *shape, dtype=torch.float64) for n, shape in shapes.items()}
    fixed = {n: torch.randn(2, dtype=torch.float64) for n in ("D", "dt_bias")}
    return {**made, **fixed, "A": -torch.rand(2, dtype=torch.float64)}


def ssd_call() -> tuple:
    return ssd_scan, {**ssd_tensors(2, 20), "initial_state": torch.randn(2, 2, 4, 3, dtype=torch.float64)}


def ssd_step_call() -> tuple:
    return ssd_update, {**ssd_tensors(2), "state": torch.randn(2, 2, 4, 3, dtype=torch.float64)}


CALLS = [scan_call, step_call, conv_call, ssd_call, ssd_step_call]


def first(result) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("backend", AVAILABLE)
def test_one_operand_of_another_dtype_is_read_as_what_it_is(backend, make, dtype, poisoned_memory):
    op, tensors = make()
    for other in tensors:
        mixed = {n: v.to(dtype if n == other else SINGLE) for n, v in tensors.items()}
        exact = first(op(**{n: v.double() for n, v in mixed.items()}))
        with use_backend(backend), torch.no_grad():
            y = first(op(**mixed))
        assert y.dtype == mixed["x"].dtype, other
        if dtype == torch.float8_e4m3fn and other == "x":
            y, exact = y.float(), exact.to(dtype).float()  # the result is rounded to x's dtype
            assert (y - exact).abs().max() <= exact.abs().max() / 8, other  # a place of three bits
            continue
        assert_close(other, y, exact)


@pytest.mark.parametrize("make", [scan_call, conv_call, ssd_call], ids=lambda make: make.__name__)
def test_tensors_without_memory_give_shapes(make):
    op, tensors = make()
    real, shape = ({n: v.to(SINGLE).to(device) for n, v in tensors.items()} for device in ("cpu", "meta"))
    for ours, expected in zip(op(**shape, return_final_state=True), op(**real, return_final_state=True), strict=True):
        assert ours.is_meta and ours.shape == expected.shape and ours.dtype == expected.dtype


@pytest.mark.parametrize("make", [scan_call, conv_call, ssd_call], ids=lambda make: make.__name__)
def test_sequence_numbers_beyond_32_bits_are_refused(make):
    op, tensors = make()
    numbers = torch.tensor([0] * 4 + [2**32] * 16).expand(2, -1)
    with pytest.raises(ValueError, match="seq_idx has numbers beyond 32 bits"):
        op(**tensors, seq_idx=numbers)
    small = op(**tensors, seq_idx=(numbers > 0).long())
    assert torch.equal(small, op(**tensors, seq_idx=(numbers > 0).int()))
