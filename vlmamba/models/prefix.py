# SPDX-License-Identifier: Apache-2.0
"""The states after the beginning of a prompt, kept to go on from: many questions about one image, turns of a chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

FORMAT = "vlmamba prefix state 1"
SAMPLED_PARAMETERS = 64
_HALF = {torch.float16, torch.bfloat16}


class PrefixCache(DynamicCache):
    """A cache whose states have seen the first `prefix_length` tokens of a prompt."""

    prefix_length: int = 0


@dataclass(frozen=True, eq=False)
class PrefixState:
    """What a model keeps of the tokens and images that it has read; of one size however many they are.

    It is never changed: generating from it works on a copy. Made by `model.prefix_state(...)`.

    Attributes:
        input_ids: `[B, tokens]`, what was read; only penalties and criteria of generation look at them.
        windows: of every layer, the last inputs of the convolution, `[B, channels, width]`.
        states: of every layer, the state of the scan, `[B, ...]`.
        fingerprint: numbers picked from the model's weights.

    Example:
        >>> state = model.prefix_state(**processor(images=image, text=beginning, return_tensors="pt"))
        >>> state.save("castle.safetensors")
        >>> state = PrefixState.load("castle.safetensors")
        >>> out = model.generate(**processor(text=questions, padding=True, return_tensors="pt"), prefix=state)
    """

    input_ids: torch.Tensor
    windows: tuple[torch.Tensor, ...]
    states: tuple[torch.Tensor, ...]
    fingerprint: torch.Tensor

    @classmethod
    def of(cls, cache: Cache, input_ids: torch.Tensor, fingerprint: torch.Tensor) -> "PrefixState":
        """A copy of what a cache holds after `input_ids`."""
        layers = range(len(cache.layers))
        windows = tuple(cache.get_conv_state(i, state_idx=0).clone() for i in layers)
        states = tuple(cache.get_recurrent_state(i, state_idx=0).clone() for i in layers)
        return cls(input_ids.clone(), windows, states, fingerprint)

    @property
    def num_tokens(self) -> int:
        """How many tokens were read, those of images and padding among them."""
        return self.input_ids.shape[1]

    @property
    def num_rows(self) -> int:
        """How many prompts were read side by side."""
        return self.input_ids.shape[0]

    @property
    def num_bytes(self) -> int:
        """What all tensors take."""
        return sum(v.nbytes for v in (self.input_ids, self.fingerprint, *self.windows, *self.states))

    def __repr__(self) -> str:
        layers, device = len(self.states), self.input_ids.device
        return f"PrefixState({self.num_rows} row(s), {self.num_tokens} tokens, {layers} layers, {device})"

    def select(self, rows: Sequence[int] | torch.Tensor) -> "PrefixState":
        """A state of these rows, in this order, as often as they are named.

        Raises:
            IndexError: there is no such row.
        """
        index = torch.as_tensor(rows, dtype=torch.long, device=self.input_ids.device)
        if bool(((index < 0) | (index >= self.num_rows)).any()):
            raise IndexError(f"rows are {index.tolist()}, expected some of 0 to {self.num_rows - 1}")
        return self._map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def for_rows(self, rows: int) -> "PrefixState":
        """A state of so many rows: this one's only row for all of them, or each its own.

        Raises:
            ValueError: there are several rows, but another number.
        """
        if self.num_rows not in (1, rows):
            raise ValueError(f"prefix has {self.num_rows} rows, the prompt {rows}; expected as many, or one for all")
        return self if self.num_rows == rows else self.select([0] * rows)

    def to(self, *args: object, **kwargs: object) -> "PrefixState":
        """As `torch.Tensor.to`: a device, a dtype or a tensor of both. States of scans stay float32 or wider.

        Raises:
            ValueError: the dtype is no floating point.
        """

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(*args, **kwargs)

        def wide(tensor: torch.Tensor) -> torch.Tensor:
            target = moved(tensor)
            return tensor.to(target.device, torch.float32) if target.dtype in _HALF else target

        target = moved(self.fingerprint)
        if not target.is_floating_point():
            raise ValueError(f"dtype is {target.dtype}, expected floating point: a state of integers is none")
        ids = self.input_ids.to(target.device)
        return PrefixState(ids, tuple(map(moved, self.windows)), tuple(map(wide, self.states)), self.fingerprint)

    def cache(self, config: PreTrainedConfig) -> PrefixCache:
        """A fresh cache to go on from, for a language model of `config`."""
        cache = PrefixCache(config=config)
        for index, (window, state) in enumerate(zip(self.windows, self.states, strict=True)):
            cache.update_conv_state(window, index, conv_kernel_size=window.shape[-1])
            cache.update_recurrent_state(state, index)
        cache.prefix_length = self.num_tokens
        return cache

    def check(self, model: nn.Module) -> None:
        """Whether this is a state of `model`.

        Raises:
            ValueError: it is of a model with other sizes or other weights.
        """
        text = model.config.get_text_config()
        if len(self.states) != text.num_hidden_layers:
            raise ValueError(
                f"prefix is of a model with {len(self.states)} layers, this one has {text.num_hidden_layers}"
            )
        theirs, ours = self.fingerprint, fingerprint_of(model)
        if theirs.shape != ours.shape or not bool(self._same(theirs, ours, model.dtype).all()):
            raise ValueError("prefix is of a model with other weights, expected the state that this model has made")

    def _same(self, theirs: torch.Tensor, ours: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Which numbers are equal, as far as either model's dtype can tell."""
        same = torch.isclose(theirs, ours, rtol=1e-6, atol=0)
        half = {kept for kept in (self.windows[0].dtype, dtype) if kept in _HALF}
        for kept in half:
            same |= theirs.to(kept) == ours.to(kept)
        if half == _HALF:  # rounded twice: a step of the coarser
            same |= torch.isclose(theirs, ours, rtol=2**-7, atol=2**-24)
        return same

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {"input_ids": self.input_ids, "fingerprint": self.fingerprint}
        for index, (window, state) in enumerate(zip(self.windows, self.states, strict=True)):
            tensors |= {f"windows.{index}": window, f"states.{index}": state}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": FORMAT})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "PrefixState":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no such state.
        """
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                if (file.metadata() or {}).get("format") != FORMAT:
                    raise ValueError(f"{path}: it is no prefix state; expected a file of PrefixState.save")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: it is no prefix state, or truncated ({error})") from error
        layers = range(sum(name.startswith("states.") for name in tensors))
        windows, states = (tuple(tensors[f"{kind}.{i}"] for i in layers) for kind in ("windows", "states"))
        return cls(tensors["input_ids"], windows, states, tensors["fingerprint"].cpu())

    def _map(self, change) -> "PrefixState":
        windows, states = tuple(map(change, self.windows)), tuple(map(change, self.states))
        return PrefixState(change(self.input_ids), windows, states, self.fingerprint)


def fingerprint_of(model: nn.Module) -> torch.Tensor:
    """float32 `[<= 64]` on the CPU: the first number of parameters all over the model, to tell it from others by."""
    resting = _resting(model)
    # offloaded weights are not there, quantized ones have no numbers to pick
    parameters = [
        p
        for p in model.parameters()
        if type(p) is nn.Parameter and p.device.type != "meta" and p.numel() and id(p) not in resting
    ]
    step = max(1, -(-len(parameters) // SAMPLED_PARAMETERS))
    first = [p.detach()[(0,) * p.dim()].float() for p in parameters[::step]]
    return torch.stack([value.to(first[0].device) for value in first]).cpu() if first else torch.zeros(0)


def _resting(model: nn.Module) -> set[int]:
    """Ids of the parameters of adapters (peft) that are switched off: they answer nothing."""
    found = set()
    for layer in model.modules():
        for name in getattr(layer, "adapter_layer_names", ()):
            for adapter, part in getattr(layer, name, {}).items():
                if layer.disable_adapters or adapter not in layer.active_adapters:
                    found |= {id(p) for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}
    return found
