# SPDX-License-Identifier: Apache-2.0
"""The native selective scan against the definition in float64: results and every gradient."""

import ctypes
import itertools

import pytest
import torch

from vlmamba import ops
from vlmamba.ops import native
from vlmamba.ops.selective_scan.chunked import selective_scan_chunked
from vlmamba.ops.selective_scan.native import selective_scan_native
from vlmamba.ops.selective_scan.reference import selective_scan_reference

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


def run(scan, inputs, paths, seq_idx, softplus, dtype=torch.float32, view=None):
    """Results and gradients, by name, of a loss through both y and the last state."""
    leaves = [None if v is None else v.detach().to(dtype, copy=True).requires_grad_() for v in inputs]
    x, *others = leaves
    x, *others = [x, *others] if view is None else [v if v is None else view(v) for v in leaves]
    x = x.unsqueeze(1).expand(-1, others[1].shape[0], -1, -1)
    y, last = scan(x, *others[:-1], paths, seq_idx, others[-1], softplus)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(v.shape, generator=g).to(dtype) for v in (y, last)]
    ((y * weights[0]).sum() + (last * weights[1]).sum()).backward()
    values = [y, last, *(None if v is None else v.grad for v in leaves)]
    return {name: v.detach() for name, v in zip(NAMES, values, strict=True) if v is not None}


def relative_error(value, expected):
    return ((value - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def check(inputs, paths=None, seq_idx=None, softplus=True, view=None):
    expected = run(selective_scan_reference, inputs, paths, seq_idx, softplus, torch.float64)
    chunked = run(selective_scan_chunked, inputs, paths, seq_idx, softplus)
    actual = run(selective_scan_native, inputs, paths, seq_idx, softplus, view=view)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.isfinite().all(), name
        # relative to PyTorch's own error: sums that cancel are inexact in any float32
        bound = 2 * relative_error(chunked[name], expected[name]) + 7e-7
        assert relative_error(value, expected[name]) <= bound, name


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
    batch, num_paths, length, channels, states = 1, 1, 12, 16, 4
    x, dt, A, B, C, _, _, state = make_inputs(batch, num_paths, length, channels, states)
    hidden = torch.full_like(dt, -1e30)
    y, last = scan_once(x, hidden, A, B, C, state)
    assert torch.equal(last, state)
    _, last = scan_once(x, dt + 200, -A.abs() - 1, B, C, state)
    assert last.isfinite().all()
    for shift in (-80.0, -30.0, -10.0, 3.0):
        values = [v.double() for v in (x, dt + shift, A, B, C, state)]
        for value, expected in zip(
            scan_once(x, dt + shift, A, B, C, torch.zeros_like(state)),
            scan_once(*values[:-1], torch.zeros_like(values[-1]), scan=selective_scan_reference),
            strict=True,
        ):
            assert relative_error(value, expected) < 2e-6, shift


def scan_once(x, dt, A, B, C, state, scan=selective_scan_native):
    return scan(x.unsqueeze(1), dt, A, B, C, None, None, None, None, state, True)


@pytest.mark.parametrize("shape", [(0, 1, 5, 4, 2), (2, 1, 0, 4, 2)], ids=str)
def test_empty(shape):
    actual = run(selective_scan_native, make_inputs(*shape), None, None, True)
    assert actual["y"].numel() == 0
    assert torch.equal(actual["A"], torch.zeros_like(actual["A"]))


def test_one_output_without_gradient():
    inputs = [v.requires_grad_() for v in make_inputs(1, 2, 30, 8, 4)]
    x, *others = inputs
    x = x.unsqueeze(1).expand(-1, 2, -1, -1)
    y, last = selective_scan_native(x, *others[:-1], None, None, others[-1], True)
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
    expected = run(selective_scan_chunked, inputs, paths, None, True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, *repeats = [run(selective_scan_native, inputs, paths, None, True) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    for name, value in first.items():
        assert all(torch.equal(value, other[name]) for other in repeats), name
        assert relative_error(value, expected[name]) < 4e-6, name


def test_keeps_nothing_without_gradient():
    x, *others = [v.requires_grad_() for v in make_inputs(1, 1, 65, 8, 4)]
    with torch.no_grad():
        y, last = selective_scan_native(x.unsqueeze(1), *others[:-1], None, None, others[-1], True)
    assert not y.requires_grad and not last.requires_grad


def test_backend_choice(monkeypatch):
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert ops.backend_for(single) == "native"
    with ops.use_backend("native"):
        assert [ops.backend_for(v) for v in (single, double, single.to(torch.complex64))] == [
            "native",
            "torch",
            "reference",
        ]
        assert ops.causal_conv1d(torch.ones(1, 4, 2), torch.ones(2, 3)).shape == (1, 4, 2)
    with ops.use_backend("torch"):
        assert ops.backend_for(single) == "torch"
    monkeypatch.setattr(native, "_load", lambda: (None, "no compiler"))
    assert ops.backend_for(single) == "torch"
    with pytest.raises(ValueError, match="no compiler"), ops.use_backend("native"):
        pass
    monkeypatch.setenv("VLMAMBA_BACKEND", "native")
    with pytest.raises(ValueError, match="VLMAMBA_BACKEND.*no compiler"):
        ops.backend_for(single)


def test_compiled_graphs_hold_torch_operators():
    x, dt, A, B, C, *_ = make_inputs(1, 1, 20, 8, 4)
    arguments = (dt[:, 0], A[0], B[:, 0], C[:, 0])
    compiled = torch.compile(lambda x: ops.selective_scan(x, *arguments), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), ops.selective_scan(x, *arguments), rtol=1e-5, atol=1e-5)


def test_structures_match():
    assert native.library().vlmamba_scan_struct_size() == ctypes.sizeof(native.Scan)
