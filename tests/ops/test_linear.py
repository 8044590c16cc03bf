# SPDX-License-Identifier: Apache-2.0
"""The linear map of few rows: every backend and instruction set against the definition in float64."""

import pytest
import torch

from tests.close import GRADIENT, INT8, VALUE, assert_close
from tests.ops.backends import AVAILABLE
from vlmamba.ops import native, use_backend
from vlmamba.ops.linear import GROUP, dequantized, linear, quantized
from vlmamba.ops.linear.reference import linear_reference

BACKENDS = [name for name in AVAILABLE if name != "triton"]
KINDS = ["float32", "bfloat16", "float16", "int8"]
SIZES = [(1, 1), (5, 3), (37, 100), (80, 1536), (130, 48), (9, 64)]  # outputs, inputs
ROWS = [1, 2, 3, 4, 7, 20]

needs_native = pytest.mark.skipif(not native.available(), reason=native.reason() or "available")


def operands(kind: str, outputs: int, inputs: int, rows: int) -> tuple:
    """x, weight, bias, scale."""
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    if kind == "int8":
        small, scale = quantized(weight)
        return x, small, bias, scale
    return *(v.to(getattr(torch, kind)) for v in (x, weight, bias)), None


def expected(x, weight, bias, scale) -> torch.Tensor:
    wide = [v if v is None or v.dtype == torch.int8 else v.double() for v in (x, weight, bias, scale)]
    return linear_reference(*wide)


def table(kind: str) -> dict:
    return INT8 if kind == "int8" else VALUE


@pytest.fixture
def instruction_set(request):
    """Chooses one by name, with int8 through VNNI or not, and gives the choice back."""
    library, (name, vnni) = native.library(), request.param
    before = library.vlmamba_target()
    if not library.vlmamba_choose_target(name.encode()) or library.vlmamba_choose_vnni(vnni) != vnni:
        library.vlmamba_choose_target(before)
        pytest.skip(f"this CPU has no {name}{' with VNNI' * vnni}")
    yield name
    library.vlmamba_choose_target(before)
    library.vlmamba_choose_vnni(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.usefixtures("poisoned_memory")
def test_values(backend, kind, outputs, inputs):
    for rows in ROWS:
        given = operands(kind, outputs, inputs, rows)
        with use_backend(backend), torch.no_grad():
            assert_close(f"{rows} rows", linear(*given), expected(*given), table(kind))


@needs_native
@pytest.mark.parametrize(
    "instruction_set", [("baseline", 0), ("avx2", 0), ("avx512", 0), ("avx512", 1)], indirect=True, ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set(instruction_set, kind):
    for outputs, inputs in SIZES:
        for rows in (1, 2, 3, 4):
            given = operands(kind, outputs, inputs, rows)
            with use_backend("native"), torch.no_grad():
                assert_close(f"{outputs}x{inputs}", linear(*given), expected(*given), table(kind))


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_on_any_number_of_threads(kind):
    given = operands(kind, 300, 700, 2)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with use_backend("native"), torch.no_grad():
                results.append(linear(*given))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_strides_and_no_bias(backend):
    x, weight, _, scale = operands("int8", 6, 70, 8)
    x = x.view(2, 2, 2, 70).transpose(0, 2)[..., 1:]
    with use_backend(backend), torch.no_grad():
        floats = dequantized(weight, scale, 70, torch.float32)[:, 1:]
        assert_close("float", linear(x, floats), x.double() @ floats.double().T)
        wide = dequantized(weight, scale, 69, torch.float64)
        assert_close("int8", linear(x, weight, scale=scale), x.double() @ wide.T, INT8)
        assert linear(x[:0], weight, scale=scale).shape == (0, 2, 2, 6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(backend, value):
    x, weight, bias, scale = operands("int8", 7, 130, 3)
    x[1, 100] = value
    with use_backend(backend), torch.no_grad():
        finite = linear(x, weight, bias, scale).isfinite().all(-1)
    assert finite.tolist() == [True, False, True]


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_gradients(kind):
    x, weight, bias, scale = operands(kind, 7, 70, 2)
    leaves = [v.requires_grad_() for v in (x, weight, bias) if v.is_floating_point()]
    dy = torch.randn(2, 7)
    ours = torch.autograd.grad(linear(x, weight, bias, scale), leaves, dy)
    wide = [v.detach().double().requires_grad_() for v in leaves]
    operand = iter(wide)
    doubled = [next(operand) if v.is_floating_point() else v for v in (x, weight, bias)]
    theirs = torch.autograd.grad(
        linear_reference(*doubled, None if scale is None else scale.double()), wide, dy.double()
    )
    for name, one, other in zip(("x", "weight or bias", "bias"), ours, theirs, strict=False):
        assert_close(name, one, other, GRADIENT)


def test_weights_are_off_by_half_a_step_at_most():
    weight = torch.randn(11, 150) * torch.logspace(-6, 6, 11).unsqueeze(-1)
    weight[3] = 0
    small, scale = quantized(weight)
    assert small.shape == (11, 3, GROUP) and scale.shape == (11, 3) and small.abs().max() == 127
    assert not small.flatten(1)[:, 150:].any()
    steps = scale.double().repeat_interleave(GROUP, dim=1)[:, :150]
    error = (dequantized(small, scale, 150, torch.float64) - weight.double()).abs()
    assert (error <= steps * (0.5 + 127 * torch.finfo(torch.float32).eps)).all()


def test_graphs_and_autocast_take_torchs_way():
    x, weight, bias, scale = operands("int8", 7, 70, 2)
    compiled = torch.compile(linear, backend="eager", fullgraph=True)
    assert_close("compiled", compiled(x, weight, bias, scale), expected(x, weight, bias, scale))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert linear(x, dequantized(weight, scale, 70, torch.float32), bias).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(7, 3)}, r"weight has shape \(7, 3\), expected \(7, 70\)"),
        ({"bias": torch.zeros(8)}, r"bias has shape \(8,\), expected \(7,\)"),
        ({"scale": torch.zeros(7, 2)}, "weight has dtype torch.float32, expected torch.int8 with a scale"),
        (
            {"weight": torch.zeros(7, 2, 64, dtype=torch.int8), "scale": torch.zeros(7, 1)},
            r"scale has shape \(7, 1\), expected \(7, 2\)",
        ),
        ({"weight": torch.zeros(7, 70, dtype=torch.int8)}, "weight has dtype torch.int8, expected a floating"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        linear(**{"x": torch.zeros(2, 70), "weight": torch.zeros(7, 70), **change})


def test_bad_weights_are_named():
    with pytest.raises(ValueError, match=r"weight is torch.float32 \(3,\)"):
        quantized(torch.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        quantized(torch.full((2, 3), torch.inf))
