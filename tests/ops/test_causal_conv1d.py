# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from tests.close import GRADIENT, VALUE, assert_close
from tests.ops.backends import AGAINST_REFERENCE, AVAILABLE, DOUBLE
from vlmamba.ops import causal_conv1d, causal_conv1d_update, use_backend
from vlmamba.ops.compat import causal_conv1d_fn
from vlmamba.ops.compat import causal_conv1d_update as compat_update


def tensors(length: int, directions: int = 2, taps: int = 4) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(2, directions, length, 5, dtype=torch.float64),
        "weight": torch.randn(directions, 5, taps, dtype=torch.float64),
        "bias": torch.randn(directions, 5, dtype=torch.float64),
        "initial_state": torch.randn(2, directions, 5, taps - 1, dtype=torch.float64),
    }


@pytest.mark.parametrize(
    ("order", "packed"),
    [
        ("none", False),
        ("permutation", False),
        ("padded", False),
        ("repeated", False),
        ("none", True),
        ("permutation", True),
    ],
)
@pytest.mark.parametrize("length", [1, 3, 4, 65])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize(("backend", "dtype"), AGAINST_REFERENCE, ids=str)
def test_backend_equals_the_definition(backend, dtype, length, taps, order, packed, poisoned_memory):
    inputs = tensors(length, taps=taps)
    paths = None if order == "none" else torch.stack([torch.randperm(length) for _ in range(2)])
    if order == "padded":
        paths = torch.cat([paths, torch.full((2, 2), -1)], 1)[:, torch.randperm(length + 2)]
    if order == "repeated":
        paths = torch.randint(0, length, (2, length + 3))
    seq_idx = (torch.rand(2, length) < 0.3).cumsum(1) if packed else None
    options = {"activation": "silu", "paths": paths, "seq_idx": seq_idx}
    expected = run("reference", inputs, options, torch.float64)
    for name, ours in run(backend, inputs, options, dtype).items():
        assert_close(name, ours, expected[name], GRADIENT if name.startswith("d") else VALUE)


def run(backend: str, inputs: dict, options: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output, last state and all gradients, for fixed cotangents."""
    inputs = {n: v.detach().to(dtype).requires_grad_() for n, v in inputs.items()}
    with use_backend(backend):
        y, state = causal_conv1d(**inputs, **options, return_final_state=True)
    generator = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=generator).to(dtype)).sum() for v in (y, state))
    gradients = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    return {"y": y, "state": state, **{f"d{n}": g for n, g in zip(inputs, gradients, strict=True)}}


@pytest.mark.parametrize("backend", AVAILABLE)
def test_an_input_shared_by_the_directions_gets_the_sum_of_their_gradients(backend):
    inputs = tensors(70)
    shared = inputs["x"][:, 0].float().requires_grad_()
    rest = {n: v.float() for n, v in inputs.items() if n != "x"}
    paths = torch.stack([torch.randperm(70) for _ in range(2)])
    with use_backend(backend):
        together = causal_conv1d(shared, **rest, paths=paths)
        apart = causal_conv1d(torch.stack([shared, shared], dim=1), **rest, paths=paths)
    assert torch.equal(together, apart)
    weights = torch.randn_like(together)
    first, second = (torch.autograd.grad(v, shared, weights)[0] for v in (together, apart))
    assert_close("dx", first, second.double(), GRADIENT)


@pytest.mark.parametrize("backend", DOUBLE)
def test_gradcheck(backend):
    inputs = {n: v[:1, :, :5] if n == "x" else v[:1] if n == "initial_state" else v for n, v in tensors(5).items()}
    paths = torch.stack([torch.randperm(5) for _ in range(2)])

    def function(*values):
        arguments = dict(zip(inputs, values, strict=True))
        with use_backend(backend):
            return causal_conv1d(**arguments, activation="silu", paths=paths, return_final_state=True)

    assert torch.autograd.gradcheck(function, [v.requires_grad_() for v in inputs.values()])


def test_it_is_the_padded_convolution_of_torch():
    x, weight, bias = torch.randn(2, 9, 5), torch.randn(5, 4), torch.randn(5)
    expected = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias, padding=3, groups=5)[..., :9]
    assert_close("y", causal_conv1d(x, weight, bias), expected.transpose(1, 2))
    assert_close("compat", causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu"), F.silu(expected))


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("grad", [True, False])
def test_steps_equal_the_whole(backend, grad, poisoned_memory):
    with use_backend(backend), torch.set_grad_enabled(grad):
        check_steps()


def check_steps():
    x, weight, bias = torch.randn(2, 9, 37), torch.randn(37, 4), torch.randn(37, requires_grad=True)
    whole, last = causal_conv1d(x, weight, bias, activation="silu", return_final_state=True)
    state, kept = torch.zeros(2, 37, 3), torch.zeros(2, 37, 4)
    for t in range(9):
        y, state = causal_conv1d_update(x[:, t], state, weight, bias, activation="silu")
        assert_close("y", y, whole[:, t])
        assert_close("compat", compat_update(x[:, t], kept, weight, bias, activation="silu"), whole[:, t])
    assert torch.equal(state, last) and torch.equal(kept[..., 1:], last)
    assert y.requires_grad == torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.zeros(4)}, "weight has shape"),
        ({"weight": [1.0]}, "weight is a list"),
        ({"x": torch.tensor(1.0)}, "x has shape"),
        ({"x": torch.zeros(2, 2, 9, 4)}, "x has shape"),
        ({"bias": torch.zeros(5)}, "bias has shape"),
        ({"initial_state": torch.zeros(2, 2, 5, 4)}, "initial_state has shape"),
        ({"activation": "relu"}, "activation is 'relu'"),
        ({"paths": torch.full((2, 9), 9)}, "paths has rows"),
    ],
    ids=lambda v: v if isinstance(v, str) else next(iter(v)),
)
def test_bad_arguments_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        causal_conv1d(**{**{n: v.float() for n, v in tensors(9).items()}, **change})


def test_arguments_are_not_changed():
    inputs = {n: v[:1] if n in ("x", "initial_state") else v for n, v in tensors(1, directions=1).items()}
    before = {n: v.clone() for n, v in inputs.items()}
    causal_conv1d(**inputs)
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_costs_one_rounding(dtype):
    inputs = {n: v.to(dtype) for n, v in tensors(30).items()}
    exact = causal_conv1d(**{n: v.double() for n, v in inputs.items()}, activation="silu")
    ours = causal_conv1d(**inputs, activation="silu")
    assert ours.dtype == dtype and torch.equal(ours, exact.float().to(dtype))
