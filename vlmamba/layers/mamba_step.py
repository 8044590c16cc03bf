# SPDX-License-Identifier: Apache-2.0
"""One token through whole Mamba-1 layers in one native call, where nobody could tell it from calling the modules.

Module by module, a layer costs some twenty small operations and as many trips through Python: longer than reading its
weights takes. The native step reads the projections' weights itself, so it stands in only where every module is of a
kind it knows, without hooks, adapters, gradients or graphs; else the modules are called.
"""

from collections.abc import Sequence
from itertools import chain
from operator import is_
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from transformers.cache_utils import Cache

from vlmamba.layers.linear import FewRowsLinear, Int8Linear
from vlmamba.ops import backend_for
from vlmamba.ops.native.step import Linear, MambaLayer, Values, run_mamba_layers

Tensor = torch.Tensor

FEW_ROWS = 8  # a larger batch gains nothing: `FEW_ROWS` of ops/linear/native.py
PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj")
_LINEAR = (nn.Linear, FewRowsLinear, Int8Linear)
_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def step_layers(blocks: Sequence[nn.Module], hidden_states: Tensor, cache: Cache | None) -> Tensor | None:
    """One token through blocks (norm, mixer, residual) that follow each other, updating their states in place.

    Args:
        blocks: transformers' `MambaBlock`s with our mixers.
        hidden_states: `[B, 1, hidden_size]`. cache: warm.

    Returns:
        `[B, 1, hidden_size]`, or None when the modules have to be called; nothing has happened then.
    """
    if not _may_step(hidden_states):
        return None
    return _run([(block.mixer, block) for block in blocks], hidden_states, cache)


def step_mixer(mixer: nn.Module, hidden_states: Tensor, cache: Cache | None) -> Tensor | None:
    """`step_layers` for a mixer alone, of normed hidden states and without the residual."""
    return _run([(mixer, None)], hidden_states, cache) if _may_step(hidden_states) else None


def _may_step(hidden_states: Tensor) -> bool:
    """Whether one token comes, of few rows on a CPU, that nobody differentiates, records, casts or hooks."""
    return (
        hidden_states.dim() == 3
        and hidden_states.shape[1] == 1
        and 0 < hidden_states.shape[0] <= FEW_ROWS
        and hidden_states.dtype in _SINGLE
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and type(hidden_states) is Tensor
        and not torch.is_autocast_enabled("cpu")
        and not torch_modules._has_any_global_hook()
        and backend_for(hidden_states) == "native"
    )


def _run(layers: list[tuple[nn.Module, nn.Module | None]], hidden_states: Tensor, cache: Cache | None) -> Tensor | None:
    rows = hidden_states.shape[0]
    calls = []
    for mixer, block in layers:
        plan = _plan(mixer, block)
        states = None if plan is None else _states(mixer, cache, rows)
        if states is None:
            return None
        window, state = states
        plan.call.conv_state = Values.of(window)
        plan.call.state = state.data_ptr()
        calls.append(plan.call)
    x = hidden_states[:, 0].to(torch.float32).contiguous()
    y = run_mamba_layers((MambaLayer * len(calls))(*calls), x).unsqueeze(1)
    block = layers[0][1]
    return y if block is not None and block.residual_in_fp32 else y.to(hidden_states.dtype)


def _states(mixer: nn.Module, cache: Cache | None, rows: int) -> tuple[Tensor, Tensor] | None:
    """The window of the convolution and the state of the scan, if they are there and as the step reads them."""
    if cache is None or not cache.has_previous_state(mixer.layer_idx):
        return None
    window = cache.get_conv_state(mixer.layer_idx, state_idx=0)
    state = cache.get_recurrent_state(mixer.layer_idx, state_idx=0)
    fits = (
        window.shape == (rows, mixer.intermediate_size, mixer.conv_kernel_size)
        and state.shape == (rows, mixer.intermediate_size, mixer.ssm_state_size)
        and window.dtype in _SINGLE
        and state.dtype == torch.float32
        and window.is_contiguous()
        and state.is_contiguous()
    )
    return (window, state) if fits else None


class _Plan:
    """A layer's part of the native call, with what it was made from.

    Raises:
        ValueError: a module is of a kind that the step does not know, or is hooked, or its tensors do not fit.
    """

    def __init__(self, mixer: nn.Module, norm: nn.Module | None, outer: list[nn.Module]):
        children = [mixer._modules[name] for name in (*PROJECTIONS, "conv1d")]
        self.modules = children if norm is None else [*children, norm]
        self.kinds = [type(module) for module in self.modules]
        checked = [*self.modules, *outer]
        self.attributes = [module.__dict__ for module in checked]
        self.hooks = [hooks for m in checked for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.holders = [d for m in (*self.modules, mixer) for d in (m._parameters, m._buffers)]
        self.holders += [module._modules for module in (mixer, *outer)]
        self.held = [value for holder in self.holders for value in holder.values()]
        self.tensors = [value for value in self.held if isinstance(value, Tensor)]
        self.addresses = self._addresses()
        self.settings = mixer.__dict__
        known = type(mixer).__name__ == "MambaMixer" and all(map(_is_known, self.modules))
        if not (known and all(map(_fits, self.tensors)) and self.holds()):
            raise ValueError("not for the native step")
        self.call = _layer(mixer, norm)

    def holds(self) -> bool:
        """Whether modules and memory are still the same and nobody hooked them; a microsecond, for every token."""
        return (
            not any(self.hooks)
            and self.settings["activation"] in ("silu", "swish")
            and all(map(is_, map(type, self.modules), self.kinds))
            and all(map(is_, chain.from_iterable(map(dict.values, self.holders)), self.held))
            and self._addresses() == self.addresses
            and not any("forward" in attributes for attributes in self.attributes)
        )

    def _addresses(self) -> list[int]:
        return list(map(Tensor.data_ptr, self.tensors))


_plans: WeakKeyDictionary[nn.Module, _Plan] = WeakKeyDictionary()


def _plan(mixer: nn.Module, block: nn.Module | None) -> _Plan | None:
    """The plan of a block, or of a mixer alone; None when the modules have to be called."""
    owner = mixer if block is None else block
    plan = _plans.get(owner)
    if plan is None or not plan.holds():
        try:
            plan = _Plan(mixer, None, []) if block is None else _Plan(mixer, block.norm, [mixer, block])
        except ValueError:
            return None
        _plans[owner] = plan
    return plan


def _is_known(module: nn.Module) -> bool:
    """Other families' mixers and norms have other names: they norm what x_proj gives, for example."""
    kind = type(module)
    return kind in _LINEAR or kind is nn.Conv1d or kind.__name__ == "MambaRMSNorm"


def _fits(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_contiguous()
        and tensor.device.type == "cpu"
        and (tensor.dtype in _SINGLE or tensor.dtype == torch.int8)
    )


def _layer(mixer: nn.Module, norm: nn.Module | None) -> MambaLayer:
    call = MambaLayer(
        hidden=mixer.hidden_size,
        channels=mixer.intermediate_size,
        states=mixer.ssm_state_size,
        rank=mixer.time_step_rank,
        taps=mixer.conv_kernel_size,
        conv_weight=Values.of(mixer.conv1d.weight),
        conv_bias=Values.of(mixer.conv1d.bias),
        A_log=Values.of(mixer.A_log),
        D=Values.of(mixer.D),
    )
    for name in PROJECTIONS:
        module = getattr(mixer, name)
        int8 = type(module) is Int8Linear
        weight = module.int8_weight if int8 else module.weight
        scale = module.scale if int8 else None
        setattr(call, name, Linear.of(weight, module.bias, scale, module.in_features))
    if norm is not None:
        call.norm, call.epsilon = Values.of(norm.weight), norm.variance_epsilon
    return call
