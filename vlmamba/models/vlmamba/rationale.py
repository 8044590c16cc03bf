# SPDX-License-Identifier: Apache-2.0
"""Traversal of rationale (Meteor, arXiv:2405.15574): a small Mamba reads the question for the large one."""

import torch
from torch import nn
from transformers import AutoModel, GenerationConfig
from transformers.cache_utils import Cache

from vlmamba.layers.connectors import MLPConnector
from vlmamba.layers.kernels import apply_kernels
from vlmamba.models.vlmamba.configuration_vlmamba import VLMambaConfig

TOR_TOKEN = "<tor>"
# of the official model
NUM_TOR_TOKENS = 10


class RationaleTraversal(nn.Module):
    """A small language model reads image and question; of it only its hidden states at `<tor>` tokens go on.

    They are projected and take the places of the language model's own `<tor>` tokens, the k-th the k-th's. In a first
    training step the small model also reads the reasons for the answer (the rationale), among which the `<tor>` tokens
    are spread, and the frozen language model must say them from what comes through: `spread_tor` and
    `vlmamba.data.RationaleCollator` make such examples, `set_stage("rationale")` says what learns, and the loss is the
    model's. In the second step, and in use, there is no rationale: the `<tor>` tokens stand in a row behind the
    question, and the small model reads the prompt itself.

    Differs from the official one (ByungKwanLee/Meteor): the language model is a Mamba instead of InternLM2-7B; `<tor>`
    tokens follow the question instead of leading the prompt, so that one sequence serves both models and nothing of an
    answer can be seen (give `rationale_input_ids` for the official order, in which the small model reads the question
    first and its `<tor>` tokens last); the small model sees images through the connector and an MLP instead of an MLP
    of its own on the encoder's features; padding does not act on it. The published code answers and does not train: the
    two steps, which parts learn in them, the sequences and the loss follow descriptions of the method, not code, and
    may differ from what its authors did.

    Args:
        config: with `rationale_config` and `tor_token_id`.
    """

    def __init__(self, config: VLMambaConfig):
        super().__init__()
        own, width = config.rationale_config.hidden_size, config.text_config.hidden_size
        self.image_token_id, self.tor_token_id = config.image_token_id, config.tor_token_id
        self.vision_projector = MLPConnector(width, own)
        self.language_model = apply_kernels(AutoModel.from_config(config.rationale_config))
        self.tor_projector = MLPConnector(own, width)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What becomes of the `<tor>` tokens.

        Args:
            input_ids: `[B, L]`, image placeholders and `<tor>` tokens among them.
            attention_mask: `[B, L]`, 0 for padding, on either side.
            image_features: `[placeholders, hidden_size]` in the language model's space, in reading order.

        Returns:
            `[<tor> tokens, hidden_size]` in the language model's space, in reading order.

        Raises:
            ValueError: there are more or fewer placeholders than image features.
        """
        images = input_ids == self.image_token_id
        given = 0 if image_features is None else image_features.shape[0]
        if not torch.compiler.is_compiling() and (found := int(images.sum())) != given:
            raise ValueError(
                f"the rationale has {found} image placeholder tokens, but the images give {given} features"
            )
        embeds = self.language_model.get_input_embeddings()(input_ids.masked_fill(images, self.tor_token_id))
        if image_features is not None:
            seen = self.vision_projector(image_features.to(embeds.device, embeds.dtype))
            embeds = embeds.masked_scatter(images.unsqueeze(-1), seen)
        options = {"attention_mask": attention_mask, "use_cache": False, "return_dict": True}
        hidden = self.language_model(inputs_embeds=embeds, **options).last_hidden_state
        return self.tor_projector(hidden[input_ids == self.tor_token_id].to(embeds.dtype))

    def insert(
        self,
        inputs_embeds: torch.Tensor,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        image_features: torch.Tensor | None,
        cache: Cache | None,
        own_ids: torch.Tensor | None = None,
        own_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings `[B, L, hidden_size]` of `input_ids` with features at the `<tor>` tokens; and these, if any.

        Args:
            own_ids: `[B, any]`, what the small model reads instead of `input_ids`; own_mask: its padding.

        Raises:
            ValueError: the `<tor>` tokens come behind states of the language model, which tell the small one nothing;
                or rows of `own_ids` have more or fewer.
        """
        if own_ids is not None and input_ids is None:
            raise ValueError("rationale_input_ids is given, but there are no input_ids")
        # of embeddings nobody knows which are <tor>; a compiled step of generation never has one
        if input_ids is None or (own_ids is None and input_ids.shape[1] == 1 and torch.compiler.is_compiling()):
            return inputs_embeds, None
        places = input_ids == self.tor_token_id
        if not torch.compiler.is_compiling():
            self._check(input_ids, own_ids, cache)
            if not bool(places.any()):
                return inputs_embeds, None
        read, mask = (input_ids, attention_mask) if own_ids is None else (own_ids, own_mask)
        features = self(read, mask, image_features).to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(places.unsqueeze(-1), features), features

    def _check(self, input_ids: torch.Tensor, own_ids: torch.Tensor | None, cache: Cache | None) -> None:
        places = (input_ids == self.tor_token_id).sum(1)
        if own_ids is None:
            if cache is not None and cache.has_previous_state(0) and bool(places.any()):
                raise ValueError(
                    f"the new tokens have {int(places.sum())} {TOR_TOKEN}, whose features depend on all before them: "
                    "read the prompt at once, without cache, prefix or prefill_chunk_size, or give rationale_input_ids"
                )
            return
        if own_ids.shape[0] != input_ids.shape[0]:
            raise ValueError(f"rationale_input_ids has {own_ids.shape[0]} rows, expected {input_ids.shape[0]}")
        given = (own_ids == self.tor_token_id).sum(1)
        if not torch.equal(places, given.to(places.device)):
            raise ValueError(
                f"the rows of input_ids have {places.tolist()} {TOR_TOKEN}, those of rationale_input_ids "
                f"{given.tolist()}; expected as many"
            )


class OneVocabularyMixin:
    """A model whose small language model, if there is one, keeps the vocabulary of the large one."""

    def resize_token_embeddings(self, *args: object, **kwargs: object) -> nn.Module:
        """`PreTrainedModel.resize_token_embeddings`, of both language models."""
        if self.base_model.rationale is not None:
            self.base_model.rationale.language_model.resize_token_embeddings(*args, **kwargs)
        return super().resize_token_embeddings(*args, **kwargs)


class UnsaidTorMixin:
    """Generation that never says `<tor>`: a word of the prompt, whose place in an answer would mean nothing."""

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: object
    ) -> tuple[GenerationConfig, dict]:
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        token = self.config.tor_token_id
        if self.config.rationale_config is not None and token < self.config.text_config.vocab_size:
            generation_config.suppress_tokens = [*(generation_config.suppress_tokens or []), token]
        return generation_config, model_kwargs


def spread_tor(rationale: str, count: int = NUM_TOR_TOKENS) -> str:
    """A rationale with `<tor>` before the first word and, at equal distances, before others, and one behind the last.

    As the official `insert_tor` (whose lost blank before the last word is not copied). Meteor leaves examples out whose
    rationale is too short.

    Raises:
        ValueError: there are fewer than three words for each but one of the `count` tokens.

    Example:
        >>> spread_tor("one two three four five six seven", 3)
        '<tor>one two three <tor>four five six seven<tor>'
    """
    words = rationale.split()
    gap = len(words) // (count - 1) if count > 1 else 0
    if gap < 3:
        least = 3 * (count - 1)
        raise ValueError(f"rationale has {len(words)} words, expected {least} or more for {count} {TOR_TOKEN}")
    for place in range(0, gap * (count - 1), gap):
        words[place] = TOR_TOKEN + words[place]
    return " ".join(words) + TOR_TOKEN
