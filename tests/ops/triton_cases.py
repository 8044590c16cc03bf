# SPDX-License-Identifier: Apache-2.0
"""Triton's kernels against the definitions in float64, in an interpreter on the CPU: `test_triton_interpreted.py`.

The interpreter takes milliseconds a step and program, so that sequences, batches and channels are few.
"""

import pytest
import torch

from tests.close import GRADIENT, VALUE, assert_close
from tests.ops.scan_cases import Case
from vlmamba.ops import (
    causal_conv1d,
    causal_conv1d_update,
    selective_scan,
    selective_state_update,
    ssd_scan,
    ssd_update,
    use_backend,
)
from vlmamba.ops.triton import launcher

pytestmark = pytest.mark.usefixtures("poisoned_memory")

ONE_PROGRAM, SPANS = 0, 10**6  # multiprocessors that make one program run all steps, or one each 64


def case(length: int, channels: int, states: int, directions: int = 1, paths: str = "none", **options) -> Case:
    return Case(length, channels, states, 1, directions, paths, **options)


SEQUENTIAL = [
    case(1, 3, 1),
    case(7, 5, 3, options=()),
    case(63, 4, 1),
    case(64, 2, 16),
    case(65, 3, 2),
    case(9, 33, 20),
    case(11, 65, 4, 2, "permutation"),
    case(12, 3, 16, 2, "padded"),
    case(12, 4, 2, 3, "partial"),
    case(12, 4, 2, 2, "repeated"),
    case(8, 3, 17, 2, "repeated"),
    case(20, 3, 4, packed=True),
    case(16, 2, 1, 2, "permutation", packed=True),
    Case(5, 4, 3, batch=3, directions=2, options=("D", "z")),
]
IN_SPANS = [
    case(200, 3, 1),
    case(131, 2, 3, packed=True),
    case(129, 2, 17, 1, "padded"),
    case(129, 2, 1, 1, "repeated", options=("dt_bias",)),
    case(130, 2, 2, paths="permutation", packed=True, options=("initial_state",)),
]


def table(case: Case) -> dict[str, object]:
    if case.paths != "repeated":
        return case.fixed()
    return {"paths": torch.randint(0, case.length, (case.directions, case.length + 3)).int(), "seq_idx": None}


def compare(function, inputs: dict, fixed: dict, dtype: torch.dtype, exact: tuple[str, ...] = ()) -> None:
    """Results and gradients of the kernels in `dtype` (those `exact` in float32) against the definition's."""
    rounded = {n: v.detach().to(torch.float32 if n in exact else dtype) for n, v in inputs.items()}
    expected = run("reference", function, {n: v.double() for n, v in rounded.items()}, fixed)
    ours = run("triton", function, rounded, fixed)
    for name, value in ours.items():
        assert_close(name, value, expected[name], GRADIENT if name.startswith("d") else VALUE)


def run(backend: str, function, inputs: dict, fixed: dict) -> dict[str, torch.Tensor]:
    leaves = {n: v.clone().requires_grad_() for n, v in inputs.items()}
    with use_backend(backend):
        results = function(**leaves, **fixed, return_final_state=True)
    generator = torch.Generator().manual_seed(7)
    # the same numbers in every dtype
    weights = [torch.randn(v.shape, generator=generator).bfloat16().to(v.dtype) for v in results]
    loss = sum((v * w).sum() for v, w in zip(results, weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    named = dict(zip(("y", "state"), results, strict=True))
    return named | {f"d{n}": g for n, g in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize("case", SEQUENTIAL, ids=str)
def test_scan_by_one_program(case, monkeypatch):
    monkeypatch.setattr(launcher, "multiprocessors", lambda device: ONE_PROGRAM)
    compare(selective_scan, case.tensors(), table(case), torch.float32)


@pytest.mark.parametrize("case", IN_SPANS, ids=str)
def test_scan_in_spans(case, monkeypatch):
    monkeypatch.setattr(launcher, "multiprocessors", lambda device: SPANS)
    compare(selective_scan, case.tensors(), table(case), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    wide = ("A", "D", "dt_bias", "initial_state")
    compare(selective_scan, case(20, 3, 4).tensors(), {}, dtype, exact=wide)


def test_mixed_precision():
    wide = ("dt", "B", "C", "A", "D", "dt_bias", "initial_state")
    compare(selective_scan, case(10, 3, 4, 2, "permutation").tensors(), {}, torch.bfloat16, exact=wide)


@pytest.mark.parametrize("merge", [True, False])
def test_operands_shared_by_directions(merge):
    inputs = case(9, 4, 2, 2, options=("D", "dt_bias")).tensors()
    inputs |= {n: inputs[n][:, 0] for n in ("x", "dt", "B", "C")}
    paths = torch.stack([torch.randperm(9) for _ in range(2)])
    compare(selective_scan, inputs, {"paths": paths, "merge": merge}, torch.float32)


def test_steps_that_need_no_softplus():
    inputs = case(9, 4, 2, options=("D",)).tensors()
    inputs["dt"] = inputs["dt"].abs()
    compare(selective_scan, inputs, {"dt_softplus": False}, torch.float32)


def test_other_strides():
    def strided(x, dt, B, C, **rest):
        return selective_scan(*(v.mT.contiguous().mT for v in (x, dt)), B=B.mT.contiguous().mT, C=C[..., ::2], **rest)

    inputs = case(9, 4, 3).tensors()
    compare(strided, inputs | {"C": inputs["C"].repeat_interleave(2, -1)}, {}, torch.float32)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)], ids=str)
def test_nothing_to_do(shape):
    batch, length = shape
    inputs = {n: v.float() for n, v in Case(length, 3, 2, batch).tensors().items()}
    values = run("triton", selective_scan, inputs, {})
    assert values["y"].shape == (batch, length, 3)
    assert torch.equal(values["state"], inputs["initial_state"])
    assert torch.equal(values["dA"], torch.zeros_like(inputs["A"]))


def test_tiny_steps_are_exact_and_hidden_ones_leave_the_state():
    inputs = {n: v.float() for n, v in case(6, 4, 3, options=("initial_state",)).tensors().items()}
    hidden = {**inputs, "dt": torch.full_like(inputs["dt"], -1e30)}
    with use_backend("triton"):
        _, last = selective_scan(**hidden, return_final_state=True)
    assert torch.equal(last, inputs["initial_state"])
    tiny = {**inputs, "dt": inputs["dt"] - 30, "initial_state": torch.zeros_like(inputs["initial_state"])}
    results = [run(b, selective_scan, {n: v.to(t) for n, v in tiny.items()}, {}) for b, t in BOTH]
    error = (results[0]["y"] - results[1]["y"]).abs().max() / results[1]["y"].abs().max()
    assert error <= VALUE[torch.float32]


BOTH = (("triton", torch.float32), ("reference", torch.float64))


@pytest.mark.parametrize("states", [1, 16, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_step(states, dtype):
    tensors = case(1, 37, states).tensors()
    rows = {n: tensors[n].flatten(0, 2).to(dtype) for n in ("x", "dt", "B", "C")} | {"z": tensors["z"][:, 0].to(dtype)}
    rest = {n: tensors[n][0].float() for n in ("A", "D", "dt_bias")}
    state = tensors["initial_state"][:, 0].float()
    with use_backend("triton"):
        y, new = selective_state_update(state, **rows, **rest)
    wide = {n: v.double() for n, v in (rows | rest).items()}
    with use_backend("reference"):
        expected, expected_state = selective_state_update(state.double(), **wide)
    assert_close("y", y, expected)
    assert_close("state", new, expected_state)


@pytest.mark.parametrize(
    ("paths", "packed", "shared"),
    [("none", False, False), ("padded", False, True), ("repeated", False, True), ("permutation", True, True)],
)
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 1), (20, 4)])
def test_convolution(length, taps, paths, packed, shared):
    inputs = {
        "x": torch.randn(2, length, 5) if shared else torch.randn(2, 2, length, 5),
        "weight": torch.randn(2, 5, taps),
        "bias": torch.randn(2, 5),
        "initial_state": torch.randn(2, 2, 5, taps - 1),
    }
    fixed = table(Case(length, batch=2, directions=2, paths=paths, packed=packed))
    compare(causal_conv1d, inputs, {**fixed, "activation": "silu"}, torch.float32)


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_convolution_steps(taps):
    x, weight, bias = torch.randn(2, 5, 37), torch.randn(37, taps), torch.randn(37)
    state = torch.zeros(2, 37, taps - 1)
    with use_backend("triton"):
        whole, last = causal_conv1d(x, weight, bias, activation="silu", return_final_state=True)
        for t in range(5):
            y, state = causal_conv1d_update(x[:, t], state, weight, bias, activation="silu")
            assert_close("y", y, whole[:, t])
    assert torch.equal(state, last)


def heads(length: int, states: int, size: int, groups: int) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(2, length, 2, size),
        "dt": torch.randn(2, length, 2),
        "A": -torch.rand(2) * 3,
        "B": torch.randn(2, length, groups, states),
        "C": torch.randn(2, length, groups, states),
        "D": torch.randn(2, size),
        "z": torch.randn(2, length, 2, size),
        "dt_bias": torch.randn(2),
        "initial_state": torch.randn(2, 2, size, states),
    }


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("length", "chunk", "states", "size", "groups"),
    [(1, 64, 1, 3, 1), (7, 4, 5, 16, 2), (65, 64, 20, 17, 2), (30, 13, 33, 20, 1)],
)
def test_mamba2_scan(length, chunk, states, size, groups, packed):
    seq_idx = (torch.rand(2, length) < 0.2).cumsum(1) if packed else None
    fixed = {"chunk_size": chunk, "seq_idx": seq_idx, "dt_limit": (0.01, 2.0) if packed else (0.0, float("inf"))}
    compare(ssd_scan, heads(length, states, size, groups), fixed, torch.float32)


def test_mamba2_scan_of_few_operands_in_half_precision():
    inputs = {n: v for n, v in heads(20, 8, 16, 2).items() if n in ("x", "dt", "A", "B", "C")}
    compare(ssd_scan, inputs, {"chunk_size": 16, "dt_softplus": True}, torch.bfloat16, exact=("A",))


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_step(groups):
    inputs = heads(1, 20, 17, groups)
    state = inputs.pop("initial_state")
    step = {n: v[:, 0] if v.dim() > 2 else v for n, v in inputs.items()}
    with use_backend("triton"):
        y, new = ssd_update(state, **step)
    with use_backend("reference"):
        expected, expected_state = ssd_update(state.double(), **{n: v.double() for n, v in step.items()})
    assert_close("y", y, expected)
    assert_close("state", new, expected_state)
