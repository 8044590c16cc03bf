# SPDX-License-Identifier: Apache-2.0
"""What the VLMamba models return."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput

from vlmamba.models.modeling_utils import CACHE


@dataclass
class VLMambaModelOutput(ModelOutput):
    """Output of `VLMambaModel`.

    Attributes:
        last_hidden_state: `[B, L, hidden_size]`.
        cache: the language model's states after the last token (`cache_params` with transformers before 5.24).
        hidden_states: of every layer, if asked for.
        image_hidden_states: image features in the language model's space, `[images * tokens, hidden_size]`.
        rationale_hidden_states: what entered at the `<tor>` tokens, `[tokens, hidden_size]`.
    """

    last_hidden_state: torch.Tensor | None = None
    if CACHE == "cache":
        cache: Cache | None = None
    else:
        cache_params: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    rationale_hidden_states: torch.Tensor | None = None


@dataclass
class VLMambaCausalLMOutput(ModelOutput):
    """Output of `VLMambaForConditionalGeneration`.

    Attributes:
        loss: next-token cross-entropy, with `labels`.
        logits: `[B, L, vocab_size]` (or the last `logits_to_keep` positions).
        cache: the language model's states after the last token (`cache_params` with transformers before 5.24).
        hidden_states: of every layer, if asked for.
        image_hidden_states: image features in the language model's space, `[images * tokens, hidden_size]`.
        rationale_hidden_states: what entered at the `<tor>` tokens, `[tokens, hidden_size]`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    if CACHE == "cache":
        cache: Cache | None = None
    else:
        cache_params: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    rationale_hidden_states: torch.Tensor | None = None
