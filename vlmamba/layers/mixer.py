# SPDX-License-Identifier: Apache-2.0
"""What transformers' Mamba-1 and Mamba-2 mixers share once they run on `vlmamba.ops`: padding, states, convolution.

transformers' own mixers read weights past their modules where a fused kernel does the work (so that LoRA, quantization
and hooks on them do nothing), restart the scan on a warm cache (Mamba-1) and let right padding into the states. The
classes here are mixed into theirs by `vlmamba.layers.kernels`: parameters, config and cache stay transformers' own.
"""

import torch
from transformers.cache_utils import Cache
from transformers.integrations.accelerate import force_accelerate_hooks

from vlmamba.layers.packing import Packing
from vlmamba.ops import causal_conv1d, causal_conv1d_update


class KernelMixer:
    """Base of the mixers; a subclass says how to `split` what `in_proj` gives, to `scan` and to `advance` by a step."""

    @force_accelerate_hooks(["conv1d"])  # its weight is read directly
    def forward(
        self,
        hidden_states: torch.Tensor,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        cache_params: Cache | None = None,
        seq_idx: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """Mix tokens.

        Args:
            hidden_states: `[B, L, hidden_size]`.
            cache: states to continue from and to update; a warm cache takes any L.
            attention_mask: `[B, >= L]`, 0 for padding anywhere; its last L columns count. Padding leaves no trace in
                the states, so a padded batch answers as each item alone.
            cache_params: another name for `cache` (transformers' before 5.24).
            seq_idx: int `[B, L]`, number of the packed sequence of each token: neither convolution nor scan crosses
                into another.

        Returns:
            `[B, L, hidden_size]`; padded positions hold nothing of use.
        """
        cache = cache_params if cache is None else cache
        packing = Packing.of(attention_mask, hidden_states)
        if packing is not None:
            hidden_states = packing.pack(hidden_states)
            seq_idx = None if seq_idx is None else packing.pack(seq_idx)
        window, state = self._states(cache)
        if state is not None and hidden_states.shape[1] == 1 and packing is None and seq_idx is None:
            return self._one_token(hidden_states[:, 0], window, state).unsqueeze(1)
        x, *others = self.split(self.project_in(hidden_states))
        valid = None if packing is None else packing.valid
        if valid is not None:
            x = x.masked_fill(~valid.unsqueeze(-1), 0)  # a bias of in_proj stands at padding too
        recent = None if window is None else self._recent(window)
        mixed = self._convolved(causal_conv1d, x, seq_idx=seq_idx, initial_state=recent)
        y, state = self.scan(mixed, *others, state, seq_idx, valid)
        if cache is not None:
            self._store(cache, x, recent, state, packing)
        out = self.out_proj(y.to(hidden_states.dtype))
        return out if packing is None else packing.unpack(out)

    def _one_token(self, hidden_states: torch.Tensor, window: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """`[B, hidden_size]` with the states of the cache, which it updates in place."""
        x, *others = self.split(self.project_in(hidden_states))
        recent = self._recent(window)
        mixed = self._convolved(causal_conv1d_update, x, recent)[0]
        y, new = self.advance(mixed, *others, state)
        window.copy_(torch.cat([recent, x.unsqueeze(-1).to(recent.dtype)], dim=-1))
        state.copy_(new)
        return self.out_proj(y.to(hidden_states.dtype))

    def project_in(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.in_proj(hidden_states)

    def _convolved(self, convolution, x: torch.Tensor, *arguments, **options):
        """The convolution with its activation, as one op where it knows the activation."""
        fused = self.activation if self.activation in ("silu", "swish") else None
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        result = convolution(x, *arguments, weight, bias, activation=fused, **options)
        if fused is not None:
            return result
        return (self.act(result[0]), result[1]) if isinstance(result, tuple) else self.act(result)

    def _states(self, cache: Cache | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if cache is None or not cache.has_previous_state(self.layer_idx):
            return None, None
        window = cache.get_conv_state(self.layer_idx, state_idx=0)
        return window, cache.get_recurrent_state(self.layer_idx, state_idx=0)

    def _recent(self, window: torch.Tensor) -> torch.Tensor:
        """The cache keeps W inputs, the convolution needs the last W - 1."""
        return window[..., window.shape[-1] - self.conv_kernel_size + 1 :]

    def _store(self, cache, x, before, state, packing) -> None:
        """Keep the last W valid inputs of the convolution, and the scan's state."""
        width = self.conv_kernel_size
        past = x.new_zeros(x.shape[0], width, x.shape[2])
        if before is not None:
            past[:, 1:] = before.transpose(1, 2)
        seen = torch.cat([past, x], dim=1)
        recent = seen[:, -width:] if packing is None else packing.recent(seen, width)
        recent = recent.transpose(1, 2)
        if cache.has_previous_state(self.layer_idx):
            cache.get_conv_state(self.layer_idx, state_idx=0).copy_(recent)
        else:
            cache.update_conv_state(recent, self.layer_idx, conv_kernel_size=width)
        cache.update_recurrent_state(state, self.layer_idx)
