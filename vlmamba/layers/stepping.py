# SPDX-License-Identifier: Apache-2.0
"""transformers' Mamba model whose layers take a generated token in one native step, wherever that can stand in."""

import torch
from transformers.models.mamba import modeling_mamba

from vlmamba.layers.mamba_step import step_layers

# what transformers calls the states: `cache` since 5.24, `cache_params` before
_NAMES = ("cache", "cache_params")
_NAME = next(name for name in _NAMES if name in modeling_mamba.MambaOutput.__dataclass_fields__)


class MambaModel(modeling_mamba.MambaModel):
    """A `transformers.MambaModel` becomes one by `model.__class__ = MambaModel`, once its mixers are ours."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> modeling_mamba.MambaOutput | tuple:
        """As transformers': arguments, results and what happens to the cache."""
        cache = next((kwargs[name] for name in _NAMES if kwargs.get(name) is not None), None)
        if cache is not None and (input_ids is None) != (inputs_embeds is None) and self._gives_the_last_only(kwargs):
            if inputs_embeds is None:
                input_ids, inputs_embeds = None, self.embeddings(input_ids)
            last = step_layers(self.layers, inputs_embeds, cache)
            if last is not None:
                kept = {_NAME: cache if self._uses_cache(kwargs.get("use_cache")) else None}
                return modeling_mamba.MambaOutput(last_hidden_state=self.norm_f(last), **kept)
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)

    def _gives_the_last_only(self, options: dict[str, object]) -> bool:
        """Whether no mask and none of the other forms of the result are asked for."""
        asked = {name: options.get(name) for name in ("output_hidden_states", "return_dict")}
        given = {name: getattr(self.config, name) if value is None else value for name, value in asked.items()}
        return options.get("attention_mask") is None and not given["output_hidden_states"] and given["return_dict"]

    def _uses_cache(self, asked: bool | None) -> bool:
        return (self.config.use_cache and not self.training) if asked is None else asked
