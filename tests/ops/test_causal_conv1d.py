# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from tests.close import GRADIENT, assert_close
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
    [("none", False), ("permutation", False), ("padded", False), ("none", True), ("permutation", True)],
)
@pytest.mark.parametrize("length", [1, 3, 4, 65])
@pytest.mark.parametrize("taps", [1, 2, 4])
def test_torch_equals_the_definition(length, taps, order, packed):
    inputs = {n: v.requires_grad_() for n, v in tensors(length, taps=taps).items()}
    paths = None if order == "none" else torch.stack([torch.randperm(length) for _ in range(2)])
    if order == "padded":
        paths = torch.cat([paths, torch.full((2, 2), -1)], 1)[:, torch.randperm(length + 2)]
    seq_idx = (torch.rand(2, length) < 0.3).cumsum(1) if packed else None
    results = []
    for backend in ("reference", "torch"):
        with use_backend(backend):
            y, state = causal_conv1d(**inputs, activation="silu", paths=paths, seq_idx=seq_idx, return_final_state=True)
        loss = (y * y.detach().cos()).sum() + (state * state.detach().cos()).sum()
        results.append([y, state, *torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)])
    for name, ours, expected in zip(["y", "state", *inputs], results[1], results[0], strict=True):
        assert_close(name, ours, expected, GRADIENT)


def test_it_is_the_padded_convolution_of_torch():
    x, weight, bias = torch.randn(2, 9, 5), torch.randn(5, 4), torch.randn(5)
    expected = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias, padding=3, groups=5)[..., :9]
    assert_close("y", causal_conv1d(x, weight, bias), expected.transpose(1, 2))
    assert_close("compat", causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation="silu"), F.silu(expected))


def test_steps_equal_the_whole():
    x, weight, bias = torch.randn(2, 9, 5), torch.randn(5, 4), torch.randn(5)
    whole, last = causal_conv1d(x, weight, bias, activation="silu", return_final_state=True)
    state, kept = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4)
    for t in range(9):
        y, state = causal_conv1d_update(x[:, t], state, weight, bias, activation="silu")
        assert_close("y", y, whole[:, t])
        assert_close("compat", compat_update(x[:, t], kept, weight, bias, activation="silu"), whole[:, t])
    assert torch.equal(state, last) and torch.equal(kept[..., 1:], last)


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
