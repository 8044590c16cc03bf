# SPDX-License-Identifier: Apache-2.0
"""The native selective scan against the definition in float64: results and every gradient."""

import itertools

import pytest
import torch

from tests.close import GRADIENT, assert_close, assert_no_worse_than_torch
from vlmamba import ops
from vlmamba.ops import native, use_backend

pytestmark = [
    pytest.mark.skipif(not native.available(), reason=native.reason() or "available"),
    pytest.mark.usefixtures("poisoned_memory"),
]

NAMES = ("y", "last", "x", "dt", "A", "B", "C", "D", "dt_bias", "state")


def make_inputs(batch, num_paths, length, channels, states, seed=0):
    """x (B, L, D) shared by all directions, dt, A, B, C, D, dt_bias, state."""
    g = torch.Generator().manual_seed(seed)
    paired = (batch, num_paths)
    return [
        torch.randn(batch, length, channels, generator=g),
        torch.randn(*paired, length, channels, generator=g) - 1,
        -4 * torch.rand(num_paths, channels, states, generator=g) - 0.02,
        torch.randn(*paired, length, states, generator=g),
        torch.randn(*paired, length, states, generator=g),
        torch.randn(num_paths, channels, generator=g),
        torch.randn(num_paths, channels, generator=g),
        torch.randn(*paired, channels, states, generator=g),
    ]


def make_paths(kind, num_paths, length, seed=0):
    g = torch.Generator().manual_seed(seed)
    if kind == "permutation":
        return torch.stack([torch.randperm(length, generator=g) for _ in range(num_paths)])
    if kind == "subset":
        return torch.stack([torch.randperm(length, generator=g)[: length // 2 + 1] for _ in range(num_paths)])
    if kind == "duplicates":
        return torch.randint(0, length, (num_paths, length + 9), generator=g).to(torch.int32)
    if kind == "padded":
        paths = torch.randint(0, length, (num_paths, length + 70), generator=g)
        return paths.where(torch.rand(paths.shape, generator=g) > 0.3, -1)
    return None


def run(backend, inputs, paths, seq_idx, softplus, dtype=torch.float32, view=None):
    """Results and gradients, by name, of a loss through both y and the last state."""
    leaves = [None if v is None else v.detach().to(dtype, copy=True).requires_grad_() for v in inputs]
    seen = leaves if view is None else [v if v is None else view(v) for v in leaves]
    y, last = scan(backend, *seen, paths, seq_idx, softplus)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(v.shape, generator=g).to(dtype) for v in (y, last)]
    ((y * weights[0]).sum() + (last * weights[1]).sum()).backward()
    values = [y, last, *(None if v is None else v.grad for v in leaves)]
    return {name: v.detach() for name, v in zip(NAMES, values, strict=True) if v is not None}


def scan(backend, x, dt, A, B, C, D, dt_bias, state, paths=None, seq_idx=None, softplus=True):
    """y (B, K, L, D) and the last state."""
    options = {"dt_softplus": softplus, "paths": paths, "seq_idx": seq_idx, "initial_state": state, "merge": False}
    with use_backend(backend):
        return ops.selective_scan(x, dt, A, B, C, D, None, dt_bias, **options, return_final_state=True)


def check(inputs, paths=None, seq_idx=None, softplus=True, view=None):
    expected = run("reference", inputs, paths, seq_idx, softplus, torch.float64)
    chunked = run("torch", inputs, paths, seq_idx, softplus)
    actual = run("native", inputs, paths, seq_idx, softplus, view=view)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        gradient = name not in ("y", "last")
        assert_no_worse_than_torch(f"d{name}" if gradient else name, value, chunked[name], expected[name])


# (B, K, L, D, N): all lengths, channels and state sizes occur, and the usual ones meet
SHAPES = [
    (2, 1, 1, 1, 1),
    (1, 2, 7, 5, 3),
    (2, 2, 63, 16, 4),
    (1, 4, 64, 33, 8),
    (2, 1, 65, 48, 16),
    (1, 1, 200, 16, 17),
    (1, 2, 65, 5, 64),
    (3, 4, 7, 33, 1),
    (1, 1, 200, 48, 8),
    (1, 2, 1, 48, 16),
    (2, 1, 63, 1, 16),
]
PATHS = ["none", "permutation", "padded", "subset", "duplicates"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", PATHS)
def test_matches_the_definition(shape, kind):
    check(make_inputs(*shape), make_paths(kind, shape[1], shape[2]))


@pytest.mark.parametrize("length", [7, 65])
@pytest.mark.parametrize("channels", [1, 16, 33])
@pytest.mark.parametrize("states", [1, 3, 4, 8])
def test_sizes(length, channels, states):
    check(make_inputs(1, 2, length, channels, states))


@pytest.mark.parametrize("skip,bias,softplus", list(itertools.product([True, False], repeat=3)))
def test_optional_operands(skip, bias, softplus):
    inputs = make_inputs(2, 2, 65, 20, 8)
    if not softplus:  # positive steps
        inputs[1], inputs[6] = inputs[1].abs(), inputs[6].abs()
    inputs[5] = inputs[5] if skip else None
    inputs[6] = inputs[6] if bias else None
    check(inputs, make_paths("permutation", 2, 65), softplus=softplus)


@pytest.mark.parametrize("kind", ["none", "permutation", "subset"])
def test_packed_sequences(kind):
    seq_idx = (torch.rand(2, 140, generator=torch.Generator().manual_seed(3)) < 0.05).long().cumsum(1)
    seq_idx[0, 64:] += 1  # a boundary between two tiles
    check(make_inputs(2, 2, 140, 20, 8), make_paths(kind, 2, 140), seq_idx)


def test_other_memory_layouts():
    check(make_inputs(2, 2, 65, 20, 8), view=lambda v: v.mT.contiguous().mT if v.dim() > 2 else v)
    check(make_inputs(2, 2, 65, 20, 8), view=lambda v: torch.stack([v, v], -1)[..., 0])
    check(make_inputs(2, 2, 65, 20, 8), view=lambda v: torch.cat([v, v], -1)[..., : v.shape[-1]])


@pytest.mark.parametrize("target", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(target):
    library = native.library()
    before = library.vlmamba_target()
    if not library.vlmamba_choose_target(target.encode()):
        pytest.skip(f"this CPU has no {target}")
    try:
        for states in (1, 16, 20):
            check(make_inputs(1, 2, 70, 37, states), make_paths("permutation", 2, 70))
        check_extreme_steps()
    finally:
        library.vlmamba_choose_target(before)


def check_extreme_steps():
    """A hidden token (dt -1e30) leaves the state exactly; large steps are finite; tiny ones precise."""
    x, dt, A, B, C, _, _, state = make_inputs(1, 1, 12, 16, 4)
    hidden = torch.full_like(dt, -1e30)
    _, last = scan("native", x, hidden, A, B, C, None, None, state)
    assert torch.equal(last, state)
    _, last = scan("native", x, dt + 200, -A.abs() - 1, B, C, None, None, state)
    assert last.isfinite().all()
    for shift in (-80.0, -30.0, -10.0, 3.0):
        inputs = (x, dt + shift, A, B, C, None, None, torch.zeros_like(state))
        exact = scan("reference", *(v if v is None else v.double() for v in inputs))
        for value, expected in zip(scan("native", *inputs), exact, strict=True):
            assert_close(f"shift {shift}", value, expected)


@pytest.mark.parametrize("shape", [(0, 1, 5, 4, 2), (2, 1, 0, 4, 2)], ids=str)
def test_empty(shape):
    actual = run("native", make_inputs(*shape), None, None, True)
    assert actual["y"].numel() == 0
    assert torch.equal(actual["A"], torch.zeros_like(actual["A"]))


def test_one_output_without_gradient():
    inputs = [v.requires_grad_() for v in make_inputs(1, 2, 30, 8, 4)]
    y, last = scan("native", *inputs)
    (only_last,) = torch.autograd.grad(last.sum(), inputs[3], retain_graph=True)
    assert only_last.isfinite().all()
    (dC,) = torch.autograd.grad(last.sum(), inputs[4], retain_graph=True)
    assert torch.equal(dC, torch.zeros_like(dC))
    (only_y,) = torch.autograd.grad(y.sum(), inputs[3])
    assert only_y.isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_repetition(threads):
    """The same bits on every run with one number of threads, the same values with any."""
    inputs, paths = make_inputs(3, 1, 300, 80, 16), make_paths("duplicates", 1, 300)
    expected = run("torch", inputs, paths, None, True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, *repeats = [run("native", inputs, paths, None, True) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    for name, value in first.items():
        assert all(torch.equal(value, other[name]) for other in repeats), name
        assert_close(name, value, expected[name].double(), GRADIENT)


def test_torch_and_the_kernels_share_one_thread_pool():
    assert native.shares_threads(native.library())


def test_backend_choice(monkeypatch):
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    with ops.use_backend("native"):
        kinds = (single, double, single.bfloat16(), single.to(torch.complex64), single.to("meta"))
        assert [ops.backend_for(v) for v in kinds] == ["native"] * 3 + ["reference", "torch"]
    with ops.use_backend("torch"):
        assert ops.backend_for(single) == "torch"
    monkeypatch.setattr(native, "_load", lambda: (None, "no compiler"))
    assert ops.backend_for(single) == "torch"
    with pytest.raises(ValueError, match="no compiler"), ops.use_backend("native"):
        pass
    monkeypatch.setenv("VLMAMBA_BACKEND", "native")
    with pytest.raises(ValueError, match="VLMAMBA_BACKEND.*no compiler"):
        ops.backend_for(single)
