# SPDX-License-Identifier: Apache-2.0
"""The Mamba language model on our kernel: transformers' parameters, config and cache, our mixer.

transformers' own mixer restarts the scan on a warm cache, lets right padding into the state and reads `dt_proj.weight`
past the module (so LoRA and quantization on it do nothing). `apply_kernels` puts this one in its place.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.integrations.accelerate import force_accelerate_hooks
from transformers.models.mamba import modeling_mamba

from vlmamba.ops import causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update
from vlmamba.ops.numerics import widened


class MambaMixer(modeling_mamba.MambaMixer):
    """Mamba-1 mixer (arXiv:2312.00752) whose scan runs on `vlmamba.ops` and whose projections are called as modules."""

    @force_accelerate_hooks(["conv1d"])  # its weight is read directly
    def forward(
        self,
        hidden_states: torch.Tensor,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        cache_params: Cache | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """Mix tokens.

        Args:
            hidden_states: `[B, L, hidden_size]`.
            cache: states to continue from and to update; a warm cache takes any L.
            attention_mask: `[B, >= L]`, 0 for padding anywhere; its last L columns count. Padding leaves no trace in
                the states, so a padded batch answers as each item alone.
            cache_params: another name for `cache` (transformers' before 5.24).

        Returns:
            `[B, L, hidden_size]`; padded positions hold nothing of use.
        """
        cache = cache_params if cache is None else cache
        packing = Packing(attention_mask, hidden_states) if attention_mask is not None else None
        if packing is not None:
            hidden_states = packing.pack(hidden_states)
        x, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        if packing is not None:
            x = x * packing.valid.unsqueeze(-1)
        conv_state, state = self._states(cache)
        if state is not None and x.shape[1] == 1 and packing is None:
            y = self._step(x[:, 0], gate[:, 0], conv_state, state, cache).unsqueeze(1)
        else:
            y = self._scan(x, gate, conv_state, state, cache, packing)
        out = self.out_proj(y)
        return out if packing is None else packing.unpack(out)

    def _states(self, cache: Cache | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if cache is None or not cache.has_previous_state(self.layer_idx):
            return None, None
        conv_state = cache.get_conv_state(self.layer_idx, state_idx=0)
        # the cache keeps W inputs, the convolution needs the last W - 1
        return conv_state[..., 1:], cache.get_recurrent_state(self.layer_idx, state_idx=0)

    def _weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.conv1d.weight.squeeze(1), self.conv1d.bias

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        dt, B, C = self.x_proj(x).split(sizes, dim=-1)
        return self.dt_proj(dt), B, C

    def _scan(self, x, gate, conv_state, state, cache, packing) -> torch.Tensor:
        weight, bias = self._weights()
        inputs = x
        x = causal_conv1d(x, weight, bias, activation=self.activation, initial_state=conv_state)
        dt, B, C = self._project(x)
        if packing is not None:
            # a time step of zero hides a token: the state neither decays nor takes it in
            dt = dt.masked_fill(~packing.valid.unsqueeze(-1), torch.finfo(dt.dtype).min)
        y, state = selective_scan(
            x,
            dt,
            -torch.exp(widened(self.A_log)),
            B,
            C,
            self.D,
            gate,
            initial_state=state,
            return_final_state=True,
        )
        if cache is not None:
            self._store(cache, inputs, conv_state, state, packing)
        return y

    def _store(self, cache, inputs, conv_state, state, packing) -> None:
        """Keep the last W valid inputs of the convolution, and the scan's state."""
        width = self.conv_kernel_size
        past = inputs.new_zeros(inputs.shape[0], width, inputs.shape[2])
        if conv_state is not None:
            past[:, 1:] = conv_state.transpose(1, 2)
        seen = torch.cat([past, inputs], dim=1)
        if packing is None:
            recent = seen[:, -width:]
        else:
            index = packing.lengths[:, None] + torch.arange(width, device=seen.device)
            recent = seen.gather(1, index.unsqueeze(-1).expand(-1, -1, seen.shape[2]))
        recent = recent.transpose(1, 2)
        if cache.has_previous_state(self.layer_idx):
            cache.get_conv_state(self.layer_idx, state_idx=0).copy_(recent)
        else:
            cache.update_conv_state(recent, self.layer_idx, conv_kernel_size=width)
        cache.update_recurrent_state(state, self.layer_idx)

    def _step(self, x, gate, conv_state, state, cache) -> torch.Tensor:
        weight, bias = self._weights()
        inputs = x
        x, _ = causal_conv1d_update(x, conv_state, weight, bias, activation=self.activation)
        dt, B, C = self._project(x)
        y, state = selective_state_update(state, x, dt, -torch.exp(widened(self.A_log)), B, C, self.D, gate)
        window = torch.cat([cache.get_conv_state(self.layer_idx, state_idx=0)[..., 1:], inputs.unsqueeze(-1)], dim=-1)
        cache.get_conv_state(self.layer_idx, state_idx=0).copy_(window)
        cache.update_recurrent_state(state, self.layer_idx)
        return y


class Packing:
    """Valid tokens first, padding last, in every row: a convolution and a scan then see what they would unpadded."""

    def __init__(self, attention_mask: torch.Tensor, hidden_states: torch.Tensor):
        batch, length = hidden_states.shape[:2]
        if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < length:
            expected = f"({batch}, at least {length})"
            raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected {expected}")
        mask = attention_mask[:, -length:].bool()
        self.order = mask.logical_not().long().argsort(dim=1, stable=True)
        self.inverse = self.order.argsort(dim=1)
        self.lengths = mask.sum(1)
        self.valid = torch.arange(mask.shape[1], device=mask.device) < self.lengths[:, None]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._take(tensor, self.order)

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._take(tensor, self.inverse)

    @staticmethod
    def _take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return tensor.gather(1, index.unsqueeze(-1).expand_as(tensor))


MIXERS: dict[type[nn.Module], type[nn.Module]] = {modeling_mamba.MambaMixer: MambaMixer}


def apply_kernels(model: nn.Module) -> nn.Module:
    """Move a transformers Mamba model onto `vlmamba.ops`, in place; parameters, config and cache stay as they are.

    Args:
        model: any module; every mixer of a supported family (mamba) inside it is replaced.

    Returns:
        The same model.

    Raises:
        ValueError: there is no such mixer in the model.

    Example:
        >>> model = vlmamba.apply_kernels(MambaForCausalLM.from_pretrained(folder))
    """
    mixers = [module for module in model.modules() if type(module) in MIXERS]
    for mixer in mixers:
        mixer.__class__ = MIXERS[type(mixer)]
    if not mixers and not any(type(module) in MIXERS.values() for module in model.modules()):
        families = ", ".join(kind.__module__.rpartition(".modeling_")[2] for kind in MIXERS)
        raise ValueError(f"apply_kernels: {type(model).__name__} has no mixer of a supported family ({families})")
    return model
