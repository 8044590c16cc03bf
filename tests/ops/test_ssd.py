# SPDX-License-Identifier: Apache-2.0
"""Mamba-2's scan: every backend against the float64 definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.close import GRADIENT, assert_close
from tests.ops.backends import AGAINST_REFERENCE, AVAILABLE, DOUBLE
from tests.ops.ssd_cases import CASES, Case, run
from vlmamba.ops import ssd_scan, ssd_update, use_backend
from vlmamba.ops.ssd.register import ssd_scan_op

FAST = [name for name in AVAILABLE if name != "reference"]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), AGAINST_REFERENCE, ids=str)
def test_backend_equals_the_definition(backend, case, dtype, poisoned_memory):
    tensors, fixed = case.tensors(), case.fixed()
    expected = run("reference", tensors, fixed, torch.float64)
    ours = run(backend, tensors, fixed, dtype)
    for name, value in ours.items():
        assert_close(name, value, expected[name], *([GRADIENT] if name.startswith("d") else []))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 40),
    chunk_size=st.integers(1, 45),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    size=st.integers(1, 6),
    states=st.integers(1, 6),
    cut=st.integers(0, 40),
    packed=st.booleans(),
)
def test_any_shape_in_any_pieces_equals_the_definition(
    length, chunk_size, groups, per_group, size, states, cut, packed
):
    case = Case(length, groups * per_group, size, groups, states, chunk_size=chunk_size, packed=packed)
    tensors, fixed = case.tensors(), case.fixed()
    expected = run("reference", tensors, fixed, torch.float64)
    for backend in [name for name in DOUBLE if name != "reference"]:
        for name, value in run(backend, tensors, fixed, torch.float64).items():
            assert_close(name, value, expected[name], GRADIENT)
        cut, seq_idx = min(cut, length), fixed["seq_idx"]
        if seq_idx is not None and 0 < cut < length and (seq_idx[:, cut - 1] != seq_idx[:, cut]).any():
            continue  # a state cannot tell that another sequence begins with the second piece
        pieces, state = [], tensors["initial_state"]
        for part in (slice(0, cut), slice(cut, length)):
            sliced = {n: v[:, part] if n in ("x", "dt", "B", "C", "z") else v for n, v in tensors.items()}
            options = {**fixed, "seq_idx": None if seq_idx is None else seq_idx[:, part]}
            with use_backend(backend):
                y, state = ssd_scan(**{**sliced, "initial_state": state}, **options, return_final_state=True)
            pieces.append(y)
        assert_close("pieces", torch.cat(pieces, dim=1), expected["y"], GRADIENT)
        assert_close("state", state, expected["state"], GRADIENT)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_worse_than_rounding_the_inputs(backend, dtype):
    case = Case(65, chunk_size=16)
    tensors, fixed = {name: v.to(dtype).double() for name, v in case.tensors().items()}, case.fixed()
    expected = run("reference", tensors, fixed, torch.float64)
    ours = run(backend, tensors, fixed, dtype)
    assert ours["y"].dtype == dtype and ours["state"].dtype == torch.float32
    assert_close("y", ours["y"], expected["y"])
    for name in ("dx", "dB", "dC", "ddt", "dz"):
        assert ours[name].dtype == dtype
        assert_close(name, ours[name], expected[name], GRADIENT)


@pytest.mark.parametrize("backend", DOUBLE)
def test_gradcheck(backend):
    case = Case(5, heads=2, size=2, groups=1, states=2, batch=1, chunk_size=2)
    tensors, fixed = case.tensors(), case.fixed()
    names = list(tensors)

    def function(*values):
        with use_backend(backend):
            return ssd_scan(**dict(zip(names, values, strict=True)), **fixed, return_final_state=True)

    assert torch.autograd.gradcheck(function, [v.requires_grad_() for v in tensors.values()])


@pytest.mark.parametrize("backend", FAST)
def test_strong_decay_stays_finite_and_exact(backend):
    case = Case(200, options=())
    tensors, fixed = case.tensors(), case.fixed()
    tensors["A"], tensors["dt"] = tensors["A"] * 1000, tensors["dt"] * 30
    expected = run("reference", tensors, fixed, torch.float64)
    for name, value in run(backend, tensors, fixed, torch.float32).items():
        assert_close(name, value, expected[name], *([GRADIENT] if name.startswith("d") else []))


@pytest.mark.parametrize("backend", AVAILABLE)
def test_pieces_with_states_equal_one_scan(backend):
    tensors = {n: v.float() for n, v in Case(50, options=("D", "z", "dt_bias")).tensors().items()}
    with use_backend(backend):
        whole, last = ssd_scan(**tensors, return_final_state=True)
        pieces, state = [], None
        for part in (slice(0, 1), slice(1, 33), slice(33, 50)):
            sliced = {n: v[:, part] if n in ("x", "dt", "B", "C", "z") else v for n, v in tensors.items()}
            y, state = ssd_scan(**sliced, initial_state=state, return_final_state=True, chunk_size=8)
            pieces.append(y)
    assert_close("y", torch.cat(pieces, dim=1), whole)
    assert_close("state", state, last)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_a_packed_sequence_is_as_if_alone(backend):
    tensors = {n: v.float() for n, v in Case(30, batch=1, options=("D", "z")).tensors().items()}
    seq_idx = torch.tensor([[0] * 9 + [1] * 14 + [2] * 7])
    with use_backend(backend):
        packed, last = ssd_scan(**tensors, seq_idx=seq_idx, return_final_state=True, chunk_size=8)
        for part in (slice(0, 9), slice(9, 23), slice(23, 30)):
            sliced = {n: v[:, part] if n in ("x", "dt", "B", "C", "z") else v for n, v in tensors.items()}
            alone, state = ssd_scan(**sliced, return_final_state=True)
            assert_close("y", packed[:, part], alone)
    assert_close("state", last, state)


@pytest.mark.parametrize("limit", [(0.0, math.inf), (0.3, 0.6)], ids=str)
@pytest.mark.parametrize("D", ["heads", "channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", AVAILABLE)
def test_one_step_equals_the_scan(backend, dtype, D, limit, poisoned_memory):
    tensors = {n: v.to(dtype) for n, v in Case(1, heads=6, states=19).tensors().items()}
    tensors["D"] = tensors["D"][:, 0] if D == "heads" else tensors["D"]
    exact = {n: v.double() for n, v in tensors.items()}
    y, state = ssd_scan(**exact, dt_limit=limit, return_final_state=True)
    step = {n: v.squeeze(1) for n, v in tensors.items() if n in ("x", "dt", "B", "C", "z")}
    rest = {n: tensors[n] for n in ("A", "D", "dt_bias")}
    before = tensors["initial_state"].clone()
    with use_backend(backend):
        one, new = ssd_update(tensors["initial_state"], **step, **rest, dt_limit=limit)
    assert one.dtype == dtype
    assert_close("y", one, y.squeeze(1))
    assert_close("state", new, state)
    assert torch.equal(tensors["initial_state"], before)


def test_one_step_is_differentiable():
    tensors = Case(1, heads=2, size=2, states=2).tensors()
    values = {n: v.squeeze(1) if n in ("x", "dt", "B", "C", "z") else v for n, v in tensors.items()}
    values["state"] = values.pop("initial_state")
    names = list(values)
    inputs = [v.requires_grad_() for v in values.values()]
    assert torch.autograd.gradcheck(lambda *v: ssd_update(**dict(zip(names, v, strict=True))), inputs)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_results_are_the_same_twice_and_for_other_strides(backend):
    case = Case(40, chunk_size=16)
    tensors, fixed = {n: v.float() for n, v in case.tensors().items()}, case.fixed()
    first = run(backend, tensors, fixed, torch.float32)
    strided = {n: v.transpose(0, -1).contiguous().transpose(0, -1) for n, v in tensors.items()}
    for name, value in run(backend, tensors, fixed, torch.float32).items():
        assert torch.equal(first[name], value), name
    for name, value in run(backend, strided, fixed, torch.float32).items():
        assert_close(name, value, first[name], GRADIENT)


@pytest.mark.parametrize("backend", FAST)
def test_autocast_changes_nothing(backend):
    case = Case(30)
    tensors, fixed = {n: v.float().requires_grad_() for n, v in case.tensors().items()}, case.fixed()
    results = []
    for enabled in (False, True):
        with use_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = ssd_scan(**tensors, **fixed)
            results.append([y, *torch.autograd.grad(y.square().sum(), list(tensors.values()))])
    assert all(torch.equal(plain, cast) for plain, cast in zip(*results, strict=True))


@pytest.mark.parametrize("backend", AVAILABLE)
def test_empty_length_gives_an_empty_result_and_the_state_back(backend):
    tensors = Case(0).tensors()
    with use_backend(backend):
        y, state = ssd_scan(**tensors, return_final_state=True)
    assert y.shape == (2, 0, 4, 5) and torch.equal(state, tensors["initial_state"])


@pytest.mark.parametrize("backend", FAST)
def test_the_state_alone_has_gradients(backend):
    tensors = {n: v.float() for n, v in Case(20, options=("initial_state",)).tensors().items()}
    results = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        inputs = {n: v.to(dtype).requires_grad_() for n, v in tensors.items()}
        with use_backend(name):
            _, state = ssd_scan(**inputs, return_final_state=True)
        results.append(torch.autograd.grad(state.square().sum(), [inputs[n] for n in ("x", "B", "initial_state")]))
    for ours, expected in zip(*results, strict=True):
        assert_close("gradient", ours, expected, GRADIENT)


def test_training_keeps_no_state_of_every_step():
    tensors = {n: v.float().requires_grad_() for n, v in Case(256, batch=1, states=64, options=()).tensors().items()}
    kept = []
    with use_backend("torch"), torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        ssd_scan(**tensors)
    states = 256 * 4 * 5 * 64
    # the inputs, and one state for each of 4 chunks
    assert sum(v.numel() for v in kept) <= sum(v.numel() for v in tensors.values()) + states // 64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 10, 4)}, "ssd_scan: x has shape"),
        ({"x": torch.zeros(2, 10, 4, 5, dtype=torch.int64)}, "x has dtype torch.int64"),
        ({"dt": torch.zeros(2, 10, 3)}, "dt has shape"),
        ({"A": torch.zeros(4, 5)}, "A has shape"),
        ({"A": [1.0]}, "A is a list, expected a tensor"),
        ({"A": torch.zeros(4, dtype=torch.complex64)}, "A has dtype torch.complex64, expected a real one"),
        ({"B": torch.zeros(2, 10, 7)}, r"B has shape \(2, 10, 7\), expected \(2, 10, G, N\)"),
        ({"B": torch.zeros(2, 9, 2, 7)}, "B has shape"),
        ({"C": torch.zeros(2, 10, 1, 7)}, "C has shape"),
        ({"B": torch.zeros(2, 10, 3, 7), "C": torch.zeros(2, 10, 3, 7)}, "B has 3 groups, expected a divisor of 4"),
        ({"D": torch.zeros(5)}, "D has shape"),
        ({"z": torch.zeros(2, 10, 20)}, "z has shape"),
        ({"dt_bias": torch.zeros(5)}, "dt_bias has shape"),
        ({"dt_bias": torch.zeros(4, device="meta")}, "dt_bias is on meta"),
        ({"initial_state": torch.zeros(2, 4, 7, 5)}, "initial_state has shape"),
        ({"seq_idx": torch.zeros(2, 9, dtype=torch.int32)}, "seq_idx has shape"),
        ({"seq_idx": torch.zeros(2, 10)}, "seq_idx is torch.float32"),
        ({"chunk_size": 0}, "chunk_size is 0, expected a positive int"),
        ({"dt_limit": (1.0, 0.5)}, r"dt_limit is \(1.0, 0.5\)"),
    ],
    ids=lambda v: v if isinstance(v, str) else next(iter(v)),
)
def test_bad_arguments_are_named(change, words):
    tensors = {n: v.float() for n, v in Case(10).tensors().items()}
    with pytest.raises(ValueError, match=words):
        ssd_scan(**{**tensors, **change})


def test_bad_arguments_of_a_step_are_named():
    good = {
        n: v.squeeze(1) if n in ("x", "dt", "B", "C", "z") else v
        for n, v in Case(1, options=("D", "z", "dt_bias")).tensors().items()
    }
    for change, words in (
        ({"state": torch.zeros(2, 4, 7, 5)}, "ssd_update: state has shape"),
        ({"x": torch.zeros(2, 20)}, "x has shape"),
        ({"B": torch.zeros(2, 7)}, r"B has shape \(2, 7\), expected \(2, G, N\)"),
        ({"dt": torch.zeros(2, 4, 5)}, "dt has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            ssd_update(**{"state": torch.zeros(2, 4, 5, 7), **good, **change})


def op_arguments(requires_grad: bool) -> tuple:
    tensors = {n: v.float().requires_grad_(requires_grad) for n, v in Case(9, chunk_size=4).tensors().items()}
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")
    seq_idx = torch.tensor([[0] * 5 + [1] * 4] * 2, dtype=torch.int32)
    operands = (*(tensors[n] for n in names), seq_idx, tensors["initial_state"])
    return *operands, 4, True, 0.0, math.inf, requires_grad


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_registered_op_passes_torchs_own_check(requires_grad):
    torch.library.opcheck(ssd_scan_op.op, op_arguments(requires_grad))


def test_a_compiled_model_keeps_it_as_one_node(monkeypatch):
    monkeypatch.delenv("VLMAMBA_BACKEND", raising=False)  # plain PyTorch puts its operators into the graph
    tensors = {n: v.float().requires_grad_() for n, v in Case(20, chunk_size=8).tensors().items()}
    names, graphs = list(tensors), []

    def function(*values):
        y, state = ssd_scan(**dict(zip(names, values, strict=True)), chunk_size=8, return_final_state=True)
        return y.sum() + state.sum()

    def backend(graph, _):
        graphs.append(graph)
        return graph

    expected = torch.autograd.grad(function(*tensors.values()), list(tensors.values()))
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    ours = torch.autograd.grad(compiled(*tensors.values()), list(tensors.values()))
    for name, gradient, other in zip(names, ours, expected, strict=True):
        assert_close(name, gradient, other, GRADIENT)
    assert len(graphs) == 1 and any("ssd_scan" in str(node.target) for node in graphs[0].graph.nodes)


def test_an_exported_program_takes_other_lengths(monkeypatch):
    monkeypatch.delenv("VLMAMBA_BACKEND", raising=False)  # plain PyTorch puts its operators into the graph

    class Scan(torch.nn.Module):
        def forward(self, x, dt, A, B, C):
            return ssd_scan(x, dt, A, B, C, chunk_size=8)

    inputs = [v.float() for v in Case(20, options=()).tensors().values()]
    length = torch.export.Dim("length", min=2, max=64)
    shapes = [{1: length}, {1: length}, None, {1: length}, {1: length}]
    program = torch.export.export(Scan(), tuple(inputs), dynamic_shapes=shapes)
    others = [v.float() for v in Case(33, options=()).tensors().values()]
    assert_close("y", program.module()(*others), Scan()(*others))
