# SPDX-License-Identifier: Apache-2.0
"""An op as torch sees it: one node under `torch.compile` and `torch.export`, one autograd function in eager mode.

An op hands in pure functions; none of them calls autograd:

- `forward(*inputs, keep)` -> a tuple of tensors, annotated so that `torch.library` can read its schema. `keep`, the
  last argument, is True when a gradient may be asked for. A tensor that a call does not need is `absent(like)`.
- `fake(*inputs, keep)` -> the same tuple as empty tensors (shapes and dtypes only).
- `setup_context(ctx, inputs, output)` saves what `backward(ctx, *gradients)` reads.

A custom op costs some 50 us a call and 200 us with gradients, the plain function 1 and the autograd function 20, which
decides the speed of small calls: eager code takes these, and the custom op is for graphs and fake tensors.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.autograd.function import once_differentiable

from vlmamba.ops.backend import requested_backend, use_backend

NAMESPACE = "vlmamba"


def absent(like: torch.Tensor) -> torch.Tensor:
    """What an op returns in place of None: custom ops return tensors only."""
    return like.new_empty(0)


def all_there(results: tuple[torch.Tensor | None, ...], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The results with `absent` in place of None."""
    return tuple(absent(like) if v is None else v for v in results)


def where_given(gradients: list[torch.Tensor], operands: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor | None]:
    """The gradients with None for operands that are; operands beyond the gradients have none."""
    return [None if v is None else g for g, v in zip(gradients, operands, strict=False)]


def given(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor, or None for `absent`; no op has a vector among its results."""
    return None if tensor is None or tensor.dim() == 1 else tensor


def graph_op(name: str, function: Callable, fake: Callable) -> Callable:
    """A function (of tensors and numbers, to tensors) that graphs hold as the node `vlmamba::name`."""
    op = torch.library.custom_op(f"{NAMESPACE}::{name}", function, mutates_args=())
    op.register_fake(fake)

    def call(*inputs):
        return op(*inputs) if _wants_graph(inputs) else function(*inputs)

    call.op = op
    return call


def differentiable_op(
    name: str, forward: Callable, fake: Callable, setup_context: Callable, backward: Callable
) -> Callable:
    """`call(*inputs)` -> forward's tuple, differentiable; `call.op` is the registered op."""
    op = torch.library.custom_op(f"{NAMESPACE}::{name}", forward, mutates_args=())
    op.register_fake(fake)
    op.register_autograd(backward, setup_context=setup_context)

    def setup(ctx, inputs, output):
        ctx.backend = requested_backend()
        setup_context(ctx, inputs, output)

    def backward_as_forward(ctx, *gradients):
        with nullcontext() if torch.compiler.is_compiling() else use_backend(ctx.backend):
            return backward(ctx, *gradients)

    function = type(
        name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(setup),
            "backward": staticmethod(once_differentiable(backward_as_forward)),
        },
    )

    def call(*inputs):
        keep = torch.is_grad_enabled() and any(isinstance(v, torch.Tensor) and v.requires_grad for v in inputs)
        if _wants_graph(inputs):
            return op(*inputs, keep)
        return function.apply(*inputs, True) if keep else forward(*inputs, False)

    call.op = op
    return call


def in_graph(*tensors: torch.Tensor | None) -> bool:
    """Whether gradients or a graph hang on these tensors: the one-step ops then stay plain PyTorch."""
    if torch.compiler.is_compiling() or type(tensors[0]) is not torch.Tensor:
        return True
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors)


def _wants_graph(inputs: tuple) -> bool:
    """Whether torch is drawing a graph, or passes tensors without memory through (fake, functional, traced)."""
    if torch.compiler.is_compiling():
        # who names plain PyTorch wants its operators in the graph (ONNX knows no others)
        return requested_backend() not in ("torch", "reference")
    return type(inputs[0]) not in (torch.Tensor, torch.nn.Parameter) or inputs[0].is_meta
