# SPDX-License-Identifier: Apache-2.0
"""Linear layers for generation: float weights read at memory speed, and int8 weights, a quarter of float32's memory."""

from collections.abc import Iterator

import torch
from torch import nn

from vlmamba.layers.mixer import KernelMixer
from vlmamba.ops.linear import GROUP, dequantized, linear, quantized

_UNCHANGEABLE = "the weight of an Int8Linear cannot be changed: change or merge float weights, then quantize again"


class FewRowsLinear(nn.Linear):
    """`nn.Linear` on `vlmamba.ops.linear`: faster for a few rows without gradient on a CPU, PyTorch's own otherwise.

    A plain `nn.Linear` becomes one by `module.__class__ = FewRowsLinear`; parameters and their names stay.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class Int8Linear(nn.Linear):
    """A linear layer with int8 weights, every 64 neighbours with a float32 scale (`vlmamba.ops.linear.quantized`).

    Its state are the buffers `int8_weight` `[outputs, groups, 64]` and `scale` `[outputs, groups]`, and the parameter
    `bias`. It is an `nn.Linear` to LoRA and hooks; `weight` gives the widened matrix, which is computed when it is used
    and cannot be changed. Gradients reach x and the bias.

    Args:
        in_features, out_features, bias, device: as of `nn.Linear`; weights are zero until loaded.
        dtype: what `weight.dtype` says; the scales are float32 whatever it is.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        nn.Module.__init__(self)  # nn.Linear's would make a float weight
        self.in_features, self.out_features = in_features, out_features
        self.float_dtype = dtype or torch.get_default_dtype()
        groups = -(-in_features // GROUP)
        weight = torch.zeros(out_features, groups, GROUP, dtype=torch.int8, device=device)
        self.register_buffer("int8_weight", weight)
        self.register_buffer("scale", torch.zeros(out_features, groups, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=self.float_dtype)) if bias else None

    @classmethod
    def of(cls, module: nn.Linear) -> "Int8Linear":
        """The quantized copy of a linear layer; the bias is shared."""
        made = cls(module.in_features, module.out_features, False, "meta", module.weight.dtype)
        made.int8_weight, made.scale = quantized(module.weight)
        made.bias = module.bias
        return made.train(module.training)

    @property
    def weight(self) -> torch.Tensor:
        return WidenedWeight(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.int8_weight, self.bias, self.scale)

    def widened(self) -> torch.Tensor:
        """The matrix that the int8 weights stand for, `[outputs, inputs]`."""
        return dequantized(self.int8_weight, self.scale, self.in_features, self.float_dtype)

    def _apply(self, fn, recurse: bool = True) -> "Int8Linear":
        scale = self.scale
        self.float_dtype = fn(torch.empty(0, dtype=self.float_dtype)).dtype
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:  # a scale that was rounded would change every weight of its group
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int8"


class WidenedWeight(torch.Tensor):
    """The weight of an `Int8Linear` with shape, dtype and device but no memory; operations get the widened matrix."""

    @staticmethod
    def __new__(cls, module: Int8Linear):
        shape, place = (module.out_features, module.in_features), module.int8_weight.device
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=module.float_dtype, device=place)

    def __init__(self, module: Int8Linear):
        self.module = module

    @property
    def data(self) -> torch.Tensor:
        return self.module.widened()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        raise RuntimeError(_UNCHANGEABLE)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function._schema.is_mutable:
            raise RuntimeError(_UNCHANGEABLE)
        args, kwargs = torch.utils._pytree.tree_map_only(cls, lambda w: w.module.widened(), (args, kwargs or {}))
        return function(*args, **kwargs)


def use_few_rows(model: nn.Module) -> nn.Module:
    """Make the linear layers of every mixer and the head `FewRowsLinear`, in place; parameters and their names stay.

    Args:
        model: any module.

    Returns:
        The same model.
    """
    for _, _, module in linear_layers(model):
        module.__class__ = FewRowsLinear
    return model


def linear_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name, layer) of the mixers' and the head's linear layers with float weights."""
    heads = {id(head) for m in model.modules() if (head := output_head(m)) is not None}
    for parent in model.modules():
        for name, module in parent.named_children():
            if not isinstance(parent, KernelMixer) and id(module) not in heads:
                continue
            adapted = module._modules.get("base_layer")  # peft wraps a layer; its own small ones stay
            layer = (parent, name, module) if adapted is None else (module, "base_layer", adapted)
            # other libraries quantize by weights of their own kind in a linear layer
            if type(layer[-1]) in (nn.Linear, FewRowsLinear) and type(layer[-1].weight) in (nn.Parameter, torch.Tensor):
                yield layer


def output_head(module: nn.Module) -> nn.Module | None:
    """What turns a language model's hidden states into logits."""
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
