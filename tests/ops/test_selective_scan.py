# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests import golden
from tests.close import GRADIENT, assert_close
from tests.ops.backends import AGAINST_REFERENCE, AVAILABLE, DOUBLE
from tests.ops.scan_cases import CASES, Case
from vlmamba.ops import backend_for, selective_scan, selective_state_update, use_backend
from vlmamba.ops.compat import selective_scan_fn
from vlmamba.ops.compat import selective_state_update as compat_state_update

FAST = [name for name in AVAILABLE if name != "reference"]


def run(backend: str, tensors: dict, fixed: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output, last state and all gradients, for fixed cotangents."""
    inputs = {name: v.detach().to(dtype).requires_grad_() for name, v in tensors.items()}
    with use_backend(backend):
        y, state = selective_scan(**inputs, **fixed, return_final_state=True)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (v * torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype)).sum() for v in (y, state)
    )
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y, "state": state, **{f"d{n}": g for n, g in zip(inputs, gradients, strict=True)}}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), AGAINST_REFERENCE, ids=str)
def test_backend_equals_the_definition(backend, case, dtype, poisoned_memory):
    tensors, fixed = case.tensors(), case.fixed()
    expected = run("reference", tensors, fixed, torch.float64)
    ours = run(backend, tensors, fixed, dtype)
    for name, value in ours.items():
        assert_close(name, value, expected[name], GRADIENT if name.startswith("d") else {**GRADIENT, dtype: 1e-5})


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_worse_than_rounding_the_inputs(backend, dtype):
    case = Case(65, channels=8, states=4, directions=2, paths="permutation")
    tensors = {name: v.to(dtype).double() for name, v in case.tensors().items()}
    fixed = case.fixed()
    expected = run("reference", tensors, fixed, torch.float64)
    ours = run(backend, tensors, fixed, dtype)
    assert ours["y"].dtype == dtype and ours["state"].dtype == torch.float32
    assert_close("y", ours["y"], expected["y"])
    assert_close("dx", ours["dx"], expected["dx"], GRADIENT)


@pytest.mark.parametrize("backend", DOUBLE)
def test_gradcheck(backend):
    case = Case(5, channels=2, states=2, directions=2, paths="padded", batch=1)
    tensors, fixed = case.tensors(), case.fixed()
    names = list(tensors)

    def function(*values):
        with use_backend(backend):
            return selective_scan(**dict(zip(names, values, strict=True)), **fixed, return_final_state=True)

    assert torch.autograd.gradcheck(function, [v.requires_grad_() for v in tensors.values()])


@pytest.mark.parametrize("backend", AVAILABLE)
def test_pieces_with_states_equal_one_scan(backend):
    case = Case(50, options=("D", "z", "dt_bias"))
    tensors = {n: v.float() for n, v in case.tensors().items()}
    with use_backend(backend):
        whole, last = selective_scan(**tensors, return_final_state=True)
        pieces, state = [], None
        for part in (slice(0, 1), slice(1, 33), slice(33, 50)):
            sliced = {n: v[..., part, :] if n in ("x", "dt", "B", "C", "z") else v for n, v in tensors.items()}
            y, state = selective_scan(**sliced, initial_state=state, return_final_state=True)
            pieces.append(y)
    assert_close("y", torch.cat(pieces, dim=1), whole)
    assert_close("state", state, last)


@pytest.mark.parametrize("states", [1, 3, 16, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", AVAILABLE)
def test_one_step_equals_the_scan(backend, dtype, states, poisoned_memory):
    with use_backend(backend), torch.no_grad():
        check_step(dtype, states)


def check_step(dtype: torch.dtype, states: int):
    case = Case(1, channels=37, states=states)
    tensors = {n: v.squeeze(1) if n in ("x", "dt", "B", "C", "initial_state") else v for n, v in case.tensors().items()}
    tensors = {n: (v.squeeze(0) if n in ("A", "D", "dt_bias") else v).to(dtype) for n, v in tensors.items()}
    y, state = selective_scan(**tensors, return_final_state=True)
    step = {n: v.squeeze(1) for n, v in tensors.items() if n in ("x", "dt", "B", "C", "z")}
    rest = {n: tensors[n] for n in ("A", "D", "dt_bias")}
    before = tensors["initial_state"].clone()
    one, new = selective_state_update(tensors["initial_state"], **step, **rest)
    assert_close("y", one, y.squeeze(1))
    assert_close("state", new, state)
    assert torch.equal(tensors["initial_state"], before)
    in_place = tensors["initial_state"].clone()
    compat_state_update(in_place, **step, **rest, dt_softplus=True)
    assert torch.equal(in_place, new)
    if dtype == torch.float32:
        halves = {n: v.bfloat16() for n, v in step.items()}
        exact, _ = selective_state_update(before.double(), **{n: v.double() for n, v in halves.items()}, **rest)
        rounded, new = selective_state_update(before, **halves, **rest)
        assert rounded.dtype == torch.bfloat16 and new.dtype == torch.float32
        assert_close("bf16", rounded, exact)


@pytest.mark.parametrize("backend", FAST)
def test_a_step_has_gradients(backend):
    tensors = {n: v.squeeze(1) if n in ("x", "dt", "B", "C") else v for n, v in Case(1).tensors().items()}
    state, A = torch.zeros(2, 6, 3, dtype=torch.float64), tensors["A"].squeeze(0).requires_grad_()
    with use_backend(backend):
        step = selective_state_update(
            state, *(tensors[n].squeeze(1) for n in ("x", "dt")), A, *(tensors[n].squeeze(1) for n in ("B", "C"))
        )
    assert step[0].requires_grad


@pytest.mark.parametrize("backend", AVAILABLE)
def test_a_hidden_token_leaves_no_trace(backend):
    tensors = {n: v.float() for n, v in Case(20, options=("D", "dt_bias")).tensors().items()}
    kept = torch.ones(20, dtype=torch.bool)
    kept[[0, 7, 8, 19]] = False
    hidden = tensors["dt"].masked_fill(~kept[:, None], torch.finfo(torch.float32).min)
    with use_backend(backend):
        y, state = selective_scan(**{**tensors, "dt": hidden}, return_final_state=True)
        short = {n: v[:, :, kept] if n in ("x", "dt", "B", "C") else v for n, v in tensors.items()}
        expected, last = selective_scan(**short, return_final_state=True)
    assert_close("y", y[:, kept], expected)
    assert_close("state", state, last)


@pytest.mark.parametrize("backend", FAST)
def test_strong_decay_and_long_sequences_stay_finite(backend):
    tensors = {n: v.float() for n, v in Case(400, options=()).tensors().items()}
    tensors["A"] = tensors["A"] * 1000
    tensors["dt"] = tensors["dt"] * 30
    with use_backend("reference"):
        expected = selective_scan(**{n: v.double() for n, v in tensors.items()})
    with use_backend(backend):
        assert_close("y", selective_scan(**tensors), expected)


def test_unmerged_directions_sum_to_the_merged_result():
    case = Case(12, directions=3, paths="partial", options=("D", "z"))
    tensors, fixed = case.tensors(), case.fixed()
    apart = selective_scan(**tensors, **fixed, merge=False)
    assert apart.shape == (2, 3, 12, 6)
    assert_close("sum", apart.sum(1), selective_scan(**tensors, **fixed))


@pytest.mark.parametrize("backend", AVAILABLE)
def test_results_are_the_same_twice_and_for_other_strides(backend):
    case = Case(40, directions=2, paths="permutation")
    tensors, fixed = {n: v.float() for n, v in case.tensors().items()}, case.fixed()
    with use_backend(backend):
        first = selective_scan(**tensors, **fixed)
        strided = {n: v.transpose(0, -1).contiguous().transpose(0, -1) for n, v in tensors.items()}
        assert torch.equal(first, selective_scan(**tensors, **fixed))
        assert_close("strided", selective_scan(**strided, **fixed), first)


def test_autocast_keeps_the_state_in_float32():
    tensors = {n: v.float() for n, v in Case(30).tensors().items()}
    expected = selective_scan(**tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selective_scan(**tensors), expected)


def test_empty_length_gives_an_empty_result_and_the_state_back():
    tensors = Case(0).tensors()
    y, state = selective_scan(**tensors, return_final_state=True)
    assert y.shape == (2, 0, 6) and torch.equal(state, tensors["initial_state"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dt": torch.zeros(2, 1, 9, 6)}, "dt has shape"),
        ({"A": torch.zeros(6)}, "A has shape"),
        ({"A": [1.0]}, "A is a list, expected a tensor"),
        ({"A": torch.zeros(1, 5, 3)}, "A has shape"),
        ({"B": torch.zeros(2, 1, 10, 4)}, "B has shape"),
        ({"C": torch.zeros(10, 3)}, "C has shape"),
        ({"D": torch.zeros(5)}, "D has shape"),
        ({"z": torch.zeros(2, 10, 5)}, "z has shape"),
        ({"dt_bias": torch.zeros(1, 7)}, "dt_bias has shape"),
        ({"initial_state": torch.zeros(2, 1, 6, 4)}, "initial_state has shape"),
        ({"paths": torch.zeros(2, 10, dtype=torch.int32)}, "paths has shape"),
        ({"paths": torch.full((1, 10), 10)}, "paths has rows from 10 to 10"),
        ({"paths": torch.zeros(1, 10)}, "paths is torch.float32"),
        ({"seq_idx": torch.zeros(2, 9, dtype=torch.int32)}, "seq_idx has shape"),
        ({"x": torch.zeros(2, 1, 10, 6, dtype=torch.int64)}, "x has dtype torch.int64"),
        ({"D": torch.zeros(1, 6, device="meta")}, "D is on meta"),
    ],
    ids=lambda v: v if isinstance(v, str) else next(iter(v)),
)
def test_bad_arguments_are_named(change, words):
    tensors = {n: v.float() for n, v in Case(10).tensors().items()}
    with pytest.raises(ValueError, match=words):
        selective_scan(**{**tensors, **change})


def test_backends_are_chosen_by_name_and_by_environment(monkeypatch):
    tensor = torch.zeros(1)
    monkeypatch.setenv("VLMAMBA_BACKEND", "reference")
    assert backend_for(tensor) == "reference"
    with use_backend("torch"):
        assert backend_for(tensor) == "torch"
        with use_backend("auto"):
            assert backend_for(tensor) != "reference"
    assert backend_for(tensor) == "reference"
    monkeypatch.setenv("VLMAMBA_BACKEND", "fast")
    with pytest.raises(ValueError, match="VLMAMBA_BACKEND: unknown backend 'fast'"):
        backend_for(tensor)
    with pytest.raises(ValueError, match="use_backend: unknown backend 'gpu'"), use_backend("gpu"):
        pass


def test_gradients_flow_through_a_state_that_is_updated_in_place():
    tensors = {n: v.requires_grad_() for n, v in Case(6, batch=1, channels=1, states=4, options=()).tensors().items()}
    kept = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    y, state = selective_scan(**tensors, initial_state=kept, return_final_state=True)
    kept.copy_(state.detach())
    y.sum().backward()
    assert torch.isfinite(tensors["x"].grad).all()


@pytest.mark.parametrize("backend", FAST)
def test_backward_inside_autocast_keeps_full_precision(backend):
    case = Case(30, channels=8, states=8)
    tensors = {n: v.float().requires_grad_() for n, v in case.tensors().items()}
    gradients = []
    for enabled in (False, True):
        with use_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            gradients.append(torch.autograd.grad(selective_scan(**tensors).square().sum(), list(tensors.values())))
    for plain, cast in zip(*gradients, strict=True):
        assert torch.equal(plain, cast)


def test_a_complex_state_matrix_runs_on_the_definition_whatever_was_asked_for():
    tensors = Case(5, options=()).tensors()
    tensors["A"] = torch.complex(tensors["A"], torch.ones_like(tensors["A"]))
    tensors["B"], tensors["C"] = tensors["B"].to(torch.complex128), tensors["C"].to(torch.complex128)
    expected = selective_scan(**tensors)
    with use_backend("torch"):
        assert torch.equal(selective_scan(**tensors), expected)
    with pytest.raises(ValueError, match="A and state must be real"):
        selective_state_update(
            torch.zeros(2, 6, 3), torch.zeros(2, 6), torch.zeros(2, 6), tensors["A"][0], *2 * [torch.zeros(2, 3)]
        )


def test_drop_in_takes_grouped_and_constant_matrices_together():
    u, delta = torch.randn(2, 6, 9), torch.rand(2, 6, 9)
    A, B, C = -torch.rand(6, 3), torch.randn(2, 2, 3, 9), torch.randn(6, 3)
    ours = selective_scan_fn(u, delta, A, B, C)
    each = B.repeat_interleave(3, dim=1)  # a group for every channel
    everywhere = C[None, :, :, None].expand(2, 6, 3, 9)
    assert_close("y", ours, selective_scan_fn(u, delta, A, each, everywhere))
    with pytest.raises(ValueError, match="B has 4 and C 1 groups, expected divisors of 6 channels"):
        selective_scan_fn(u, delta, A, torch.randn(2, 4, 3, 9), torch.randn(2, 3, 9))


def test_what_would_be_faster_is_said_once(monkeypatch, caplog):
    from vlmamba.ops import backend

    monkeypatch.setattr(backend.native, "available", lambda: False)
    monkeypatch.setattr(backend.native, "reason", lambda: "no compiler")
    backend._say_what_is_missing.cache_clear()
    with caplog.at_level("INFO", logger="vlmamba"):
        assert [backend_for(torch.zeros(1)) for _ in range(3)] == ["torch"] * 3
    assert caplog.messages[-1] == "the ops run without the backend 'native': no compiler"
    assert len(caplog.messages) == len(set(caplog.messages))
    backend._say_what_is_missing.cache_clear()


GOLDEN = golden.load("selective-scan")


@pytest.mark.parametrize("case", [case["name"] for case in GOLDEN.config["cases"]])
def test_drop_in_equals_mamba_ssm(case):
    io = {key.split("/")[1]: v for key, v in GOLDEN.io.items() if key.startswith(f"{case}/")}
    for name in [key[:-3] for key in io if key.endswith(".re")]:
        io[name] = torch.complex(io.pop(f"{name}.re"), io.pop(f"{name}.im"))
    softplus = next(c for c in GOLDEN.config["cases"] if c["name"] == case)["delta_softplus"]
    names = [n for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias") if n in io]
    inputs = {n: io[n].clone().requires_grad_() for n in names}
    out, last = selective_scan_fn(**inputs, delta_softplus=softplus, return_last_state=True)
    for name, value in (("out", out), ("last_state", last)):
        assert_golden(name, value, io[name])
    for suffix, loss in (
        ("", (out * io["grad_out"]).sum()),
        ("_with_last", (out * io["grad_out"]).sum() + (last * io["grad_last"].conj()).real.sum()),
    ):
        gradients = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            assert_golden(f"d{name}{suffix}", gradient, io[f"d{name}{suffix}"])


def assert_golden(name: str, ours: torch.Tensor, expected: torch.Tensor) -> None:
    """The pass rule of the op fixtures: float64 within 1e-9."""
    assert (ours - expected).abs().max() <= 1e-9 * max(1.0, expected.abs().max().item()), name


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("case", [Case(1, batch=1), Case(9, directions=2, paths="permutation")], ids=str)
def test_arguments_are_not_changed(backend, case):
    inputs, fixed = {n: v.float() for n, v in case.tensors().items()}, case.fixed()
    before = {n: v.clone() for n, v in inputs.items()}
    with use_backend(backend):
        selective_scan(**inputs, **fixed)
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name
