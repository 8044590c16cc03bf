# SPDX-License-Identifier: Apache-2.0
"""The ops as torch sees them: registered, traced, compiled and exported as one node."""

import pytest
import torch

from tests.close import GRADIENT, assert_close
from tests.ops.scan_cases import Case
from vlmamba.ops import causal_conv1d, selective_scan, use_backend
from vlmamba.ops.causal_conv1d.register import causal_conv1d_op
from vlmamba.ops.selective_scan.register import selective_scan_op

SCAN = Case(70, channels=5, states=3, directions=2, paths="permutation")


def scan_operands(dtype=torch.float32) -> tuple:
    tensors, fixed = {n: v.to(dtype).requires_grad_() for n, v in SCAN.tensors().items()}, SCAN.fixed()
    gate = tensors["z"].detach().unsqueeze(1).requires_grad_()
    first = [tensors[n] for n in ("x", "dt", "A", "B", "C", "D")]
    return (*first, gate, tensors["dt_bias"], fixed["paths"], None, tensors["initial_state"], True, True)


def conv_operands(dtype=torch.float32) -> tuple:
    def leaf(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    paths = torch.stack([torch.randperm(9) for _ in range(2)]).int()
    return leaf(2, 1, 9, 5), leaf(2, 5, 4), leaf(2, 5), paths, None, leaf(2, 2, 5, 3), True


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("op", "operands"), [(selective_scan_op, scan_operands), (causal_conv1d_op, conv_operands)])
def test_opcheck(op, operands, keep):
    arguments = operands()
    if not keep:
        arguments = tuple(v.detach() if isinstance(v, torch.Tensor) else v for v in arguments)
    torch.library.opcheck(op.op, (*arguments, keep))


class Block(torch.nn.Module):
    """A convolution and a scan of two directions."""

    def __init__(self):
        super().__init__()
        self.tensors = torch.nn.ParameterDict(
            {n: v.float() for n, v in SCAN.tensors().items() if n in ("A", "D", "dt_bias")}
        )
        self.weight = torch.nn.Parameter(torch.randn(2, 5, 4))
        self.register_buffer("paths", SCAN.fixed()["paths"])

    def forward(self, x, dt, B, C, z):
        x = causal_conv1d(x, self.weight, activation="silu", paths=self.paths)
        A, D, dt_bias = (self.tensors[n] for n in ("A", "D", "dt_bias"))
        return selective_scan(x, dt, A, B, C, D, z, dt_bias, paths=self.paths)


@pytest.fixture
def inputs() -> list[torch.Tensor]:
    tensors = {n: v.float() for n, v in SCAN.tensors().items()}
    return [tensors["x"][:, 0], *(tensors[n] for n in ("dt", "B", "C", "z"))]


def gradients(function, block, inputs) -> list[torch.Tensor]:
    leaves = [v.clone().requires_grad_() for v in inputs]
    block.zero_grad()
    y = function(*leaves)
    y.square().sum().backward()
    return [y, *(v.grad for v in leaves), *(v.grad.clone() for v in block.parameters())]


@pytest.mark.parametrize("engine", ["aot_eager", "eager"])
def test_compiled_equals_eager_with_gradients(engine, inputs):
    block = Block()
    compiled = torch.compile(block, backend=engine, fullgraph=True)
    for ours, expected in zip(gradients(compiled, block, inputs), gradients(block, block, inputs), strict=True):
        assert_close("compiled", ours, expected.double(), GRADIENT)


def test_a_graph_holds_one_node_for_each_op(inputs):
    block = Block().eval()
    graphs = []

    def look(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    torch.compile(block, backend=look, fullgraph=True)(*inputs)
    (nodes,) = graphs
    for op in ("selective_scan", "causal_conv1d"):
        assert sum(f"vlmamba.{op}" in node for node in nodes) == 1, nodes


def test_exported_with_any_length_equals_eager(inputs, tmp_path):
    class Scan(torch.nn.Module):
        def forward(self, x, dt, A, B, C):
            return selective_scan(x, dt, A, B, C)

    tensors = {n: v.float()[:, 0] for n, v in Case(30, options=()).tensors().items() if n != "A"}
    A = -torch.rand(6, 3)
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = {n: {1: length} for n in tensors} | {"A": None}
    program = torch.export.export(Scan(), kwargs={**tensors, "A": A}, args=(), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "scan.pt2")
    loaded = torch.export.load(tmp_path / "scan.pt2").module()
    for length in (30, 97):
        tensors = {n: v.float()[:, 0] for n, v in Case(length, options=()).tensors().items() if n != "A"}
        assert_close("exported", loaded(**tensors, A=A), Scan()(**tensors, A=A).double())


def test_plain_pytorch_can_be_asked_into_the_graph(inputs):
    block = Block().eval()
    graphs = []

    def look(graph, _):
        graphs.append(str(graph.graph))
        return graph

    with use_backend("torch"), torch.no_grad():
        compiled = torch.compile(block, backend=look, fullgraph=True)(*inputs)
        assert_close("inline", compiled, block(*inputs).double())
    assert "vlmamba" not in graphs[0]


def test_fake_tensors_pass_through(inputs):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode, torch.no_grad():
        block = Block()
        y = block(*(mode.from_tensor(v) for v in inputs))
    assert y.shape == (2, 70, 5)


def test_a_block_trains_the_same_with_gradient_checkpointing(inputs):
    from torch.utils.checkpoint import checkpoint

    block = Block()
    plain = gradients(block, block, inputs)
    for reentrant in (False, True):
        again = gradients(lambda *v, r=reentrant: checkpoint(block, *v, use_reentrant=r), block, inputs)
        for ours, expected in zip(again, plain, strict=True):
            assert torch.equal(ours, expected)


def test_using_an_op_twice_and_going_back_twice_gives_the_same():
    operands = scan_operands()
    y = selective_scan_op(*operands)[0]
    leaves = [v for v in operands if isinstance(v, torch.Tensor) and v.requires_grad]
    loss = (y + selective_scan_op(*operands)[0]).square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, leaves), strict=True):
        assert torch.equal(one, other)


def test_backward_runs_on_the_backend_of_its_forward(monkeypatch):
    from vlmamba.ops.selective_scan import chunked

    calls = []
    backward = chunked.backward
    monkeypatch.setattr(chunked, "backward", lambda *v: calls.append(1) or backward(*v))
    with use_backend("torch"):
        y = selective_scan_op(*scan_operands())[0]
    y.sum().backward()
    assert calls == [1]


def test_plain_pytorch_in_the_graph_has_gradients(inputs):
    block = Block()
    with use_backend("torch"):
        plain = gradients(block, block, inputs)
        compiled = gradients(torch.compile(block, backend="aot_eager", fullgraph=True), block, inputs)
    for ours, expected in zip(compiled, plain, strict=True):
        assert_close("compiled", ours, expected.double(), GRADIENT)
