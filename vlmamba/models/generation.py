# SPDX-License-Identifier: Apache-2.0
"""Generation of all language models here: padding on either side, prompts read in pieces, prefixes read once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from vlmamba.models.modeling_utils import CACHE
from vlmamba.models.prefix import PrefixState, fingerprint_of

# what enters with the prompt alone
PROMPT_ONLY = (
    "inputs_embeds",
    "pixel_values",
    "mm_encoder_outputs",
    "rationale_input_ids",
    "rationale_attention_mask",
)


class StatefulGenerationMixin(GenerationMixin):
    """Generation for models with states: a padded batch answers as each item alone, a prompt in pieces as the whole."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        prefix: PrefixState | None = None,
        **kwargs: object,
    ):
        """`GenerationMixin.generate`, but right padding is moved to the left first: the returned prompts then have
        their padding on the left. With a warm `cache`, pass only the tokens that it has not seen.

        Args:
            inputs: `[B, L]` token ids, as `input_ids`.
            generation_config: as transformers'; keywords come before it. `prefill_chunk_size` reads the prompt in
                pieces of so many tokens, and images when their piece comes: memory does not grow with the prompt.
            prefix: what `prefix_state` has read, of one row or of as many as B; it is not changed. Pass only what
                follows it. Answers are those to the whole prompt: lengths, penalties and criteria count the prefix,
                streamers are given it, but the returned sequences begin after it.
            kwargs: as transformers'.

        Raises:
            ValueError: the prefix is of another model or batch, or `prefill_chunk_size` no positive integer.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        mask = kwargs.get("attention_mask")
        if mask is None and input_ids is not None:
            mask = self._infer_mask(input_ids, generation_config, kwargs)
        if mask is not None and mask.dim() == 2 and bool((mask[:, -1:] == 0).any()):
            order = mask.long().argsort(dim=1, stable=True)
            mask = kwargs["attention_mask"] = mask.gather(1, order)
            if input_ids is not None and input_ids.shape == mask.shape:
                input_ids = input_ids.gather(1, order)
            if (embeds := kwargs.get("inputs_embeds")) is not None:
                kwargs["inputs_embeds"] = embeds.gather(1, order.unsqueeze(-1).expand_as(embeds))
        if prefix is not None:
            input_ids, kwargs["attention_mask"] = self._behind(prefix, input_ids, mask, generation_config, kwargs)
        with _checkpointing_off(self):
            out = super().generate(input_ids, generation_config=generation_config, **kwargs)
        if prefix is None:
            return out
        if isinstance(out, torch.Tensor):
            return out[:, prefix.num_tokens :]
        out.sequences = out.sequences[:, prefix.num_tokens :]
        return out

    @torch.no_grad()
    def prefix_state(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        prefix: PrefixState | None = None,
        prefill_chunk_size: int | None = None,
        **inputs: object,
    ) -> PrefixState:
        """Read the beginning of prompts once, for `generate(..., prefix=state)` to go on from as often as you like.

        Args:
            input_ids: `[B, L]`. attention_mask: `[B, L]`, 0 for padding, on either side.
            prefix: an earlier state that these tokens follow.
            prefill_chunk_size: read in pieces of so many tokens.
            inputs: what else the model reads with a prompt, such as `pixel_values`.

        Raises:
            ValueError: there are no tokens, or `prefix`, `prefill_chunk_size` or another input does not fit.

        Example:
            >>> state = model.prefix_state(**processor(images=image, text=beginning, return_tensors="pt"))
            >>> out = model.generate(**processor(text=rest, return_tensors="pt"), prefix=state)
        """
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected [batch, length]")
        self._validate_model_kwargs(dict(inputs))
        if attention_mask is None:
            attention_mask = self._infer_mask(input_ids, None, {})
        cache, before = None, input_ids[:, :0]
        if prefix is not None:
            prefix = self._fitting(prefix, input_ids)
            cache, before = prefix.cache(self.config.get_text_config()), prefix.input_ids
        options = {CACHE: cache, "use_cache": True, "logits_to_keep": 1, **inputs}
        with _checkpointing_off(self):
            outputs = self._read(input_ids, None, attention_mask, prefill_chunk_size, options)
        ids = torch.cat([before.to(input_ids.device), input_ids], dim=1)
        return PrefixState.of(outputs[CACHE], ids, fingerprint_of(self))

    def _fitting(self, prefix: PrefixState, inputs: torch.Tensor) -> PrefixState:
        """A prefix for the rows of `inputs`, where this model reads them."""
        if not isinstance(prefix, PrefixState):
            raise ValueError(f"prefix has type {type(prefix).__name__}, expected a PrefixState of model.prefix_state")
        prefix.check(self)
        weight = self.get_input_embeddings().weight
        # weights that wait elsewhere are on the device meta
        place = inputs.device if weight.device.type == "meta" else weight.device
        return prefix.for_rows(inputs.shape[0]).to(place, weight.dtype)

    def _behind(
        self,
        prefix: PrefixState,
        input_ids: torch.Tensor | None,
        mask: torch.Tensor | None,
        generation_config: GenerationConfig | None,
        kwargs: dict,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of the whole prompt; a cache that has seen the prefix is put into the keywords."""
        if kwargs.get(CACHE) is not None:
            raise ValueError(f"prefix and {CACHE} are both given, expected one of them")
        if self._setting("use_cache", generation_config, kwargs) is False:
            raise ValueError("use_cache is False, expected True: the prefix is a cache")
        new = kwargs.get("inputs_embeds") if input_ids is None else input_ids
        if new is None:
            raise ValueError("input_ids is missing, expected the tokens that follow the prefix")
        fitting = self._fitting(prefix, new)
        kwargs[CACHE] = fitting.cache(self.config.get_text_config())
        before = fitting.input_ids.to(new.device)
        mask = before.new_ones(new.shape[:2]) if mask is None else mask
        mask = torch.cat([mask.new_ones(before.shape), mask[:, -new.shape[1] :]], dim=1)
        return before if input_ids is None else torch.cat([before, input_ids], dim=1), mask

    def _infer_mask(
        self, input_ids: torch.Tensor, generation_config: GenerationConfig | None, kwargs: dict
    ) -> torch.Tensor | None:
        """As transformers does: padding can be told from its token unless that also ends answers."""
        pad, ends = (self._setting(name, generation_config, kwargs) for name in ("pad_token_id", "eos_token_id"))
        ends = ends if isinstance(ends, list) else [ends]
        if pad is None or pad in ends:
            return None
        return (input_ids != pad).long()

    def _setting(self, name: str, generation_config: GenerationConfig | None, kwargs: dict) -> object:
        given = kwargs.get(name, getattr(generation_config, name, None))
        return getattr(self.generation_config, name) if given is None else given

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict,
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict:
        """With states, images are encoded when the prompt is read; without, once for all the recomputing."""
        model_kwargs["use_cache"] = generation_config.use_cache
        if generation_config.use_cache:
            return model_kwargs
        return super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: object,
    ) -> tuple[torch.Tensor, dict]:
        """With states, a prompt is read once however many answers it gets: `_prefill` repeats what it leaves."""
        kept = {}
        if model_kwargs.get("use_cache"):
            kept = {name: model_kwargs.pop(name) for name in PROMPT_ONLY if name in model_kwargs}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | kept

    def _get_static_cache_init_shape(self) -> None:
        """A static cache of states takes its shapes from the first states; there are no heads to make it with."""
        return None

    def _prefill(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict,
        is_first_iteration: bool = True,
    ) -> ModelOutput:
        """Read each prompt once, then repeat states and logits for its beams or samples."""
        cache, size = model_kwargs.get(CACHE), generation_config.prefill_chunk_size
        if cache is None:
            if size is not None:
                raise ValueError("use_cache is False, expected True: prefill_chunk_size needs a cache")
            return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)
        copies = max(generation_config.num_beams, generation_config.num_return_sequences)
        options = dict(model_kwargs)
        embeds, mask = options.pop("inputs_embeds", None), options.pop("attention_mask", None)
        ids = input_ids[::copies, getattr(cache, "prefix_length", 0) :]
        outputs = self._read(ids, embeds, None if mask is None else mask[::copies], size, options)
        if copies > 1:
            rows = torch.arange(ids.shape[0], device=ids.device).repeat_interleave(copies)
            outputs[CACHE].reorder_cache(rows)
            for name in ("logits", "hidden_states"):
                if name in outputs:
                    outputs[name] = _take(outputs[name], rows)
        return outputs

    def _read(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None,
        mask: torch.Tensor | None,
        size: int | None,
        options: dict,
    ) -> ModelOutput:
        """Read rows from the cache in `options` on, in pieces of `size` tokens; what the last piece gives.

        Args:
            input_ids: `[B, L]`; not read where `inputs_embeds` `[B, L, D]` is given. mask: `[B, >= L]`.
            size: None for all tokens at once.
            options: of `prepare_inputs_for_generation`.
        """
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(f"prefill_chunk_size is {size!r}, expected a positive integer: tokens read at a time")
        rows, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        if not rows * length:
            raise ValueError(f"the prompt has {rows} row(s) of {length} new token(s), expected at least one token")
        if mask is not None and mask.shape[1] < length:
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, expected at least {length} columns")
        mask = None if mask is None else mask[:, -length:]
        size = size or length
        images = None
        if size < length:
            images = self._prompt_images(input_ids if inputs_embeds is None else None, inputs_embeds, options)
        for piece in _pieces(length, size, padded=mask is not None):
            inputs = self.prepare_inputs_for_generation(
                input_ids[:, piece],
                inputs_embeds=None if inputs_embeds is None else inputs_embeds[:, piece],
                attention_mask=None if mask is None else mask[:, piece],
                is_first_iteration=True,
                **options,
            )
            if images is not None:
                inputs["mm_encoder_outputs"] = images.of(piece)
            outputs = self(**inputs, return_dict=True)
            options[CACHE] = outputs[CACHE]
        return outputs

    def _prompt_images(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, options: dict) -> None:
        """Takes images out of `options` for a prompt in pieces; a language model has none."""
        return None


@contextmanager
def _checkpointing_off(model: nn.Module) -> Iterator[None]:
    """Layers that checkpoint their activations give no states; generation is not differentiated."""
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for layer in layers:
        layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


def _pieces(length: int, size: int, padded: bool) -> list[slice]:
    """Pieces of `size` columns and what is left.

    transformers' Mamba-2 takes a column alone for a generated token, which is no padding: with padding, none is alone.
    """
    starts = list(range(0, length, max(size, 2) if padded else size))
    if padded and length - starts[-1] == 1 and len(starts) > 1:
        del starts[-1]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], length], strict=True)]


def _take(value: torch.Tensor | tuple, rows: torch.Tensor) -> torch.Tensor | tuple:
    return tuple(_take(part, rows) for part in value) if isinstance(value, tuple) else value.index_select(0, rows)
