# SPDX-License-Identifier: Apache-2.0
"""Vision language models of one size with random weights, behind one face: `encode`, `prefill`, `decode`."""

from typing import Protocol

import torch
import transformers

import vlmamba
from benchmarks.peers.language_models import CACHE
from benchmarks.shapes import VlmSizes

PLACEHOLDER = 4


class Vlm(Protocol):
    """What is measured."""

    model: torch.nn.Module

    def encode(self, pixels: torch.Tensor) -> None:
        """Encoder and connector."""

    def prefill(self, ids: torch.Tensor, pixels: torch.Tensor) -> object:
        """Everything up to the logits of the first new token; what `decode` goes on from."""

    def decode(self, cache: object, tokens: int) -> None:
        """So many tokens more, one by one; afterwards `cache` takes no more room than before."""


class _Torch:
    """A transformers-like VLM whose forward pass names its cache `cache_name`."""

    cache_name: str

    def __init__(self, model: torch.nn.Module):
        self.model = model.eval()

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> None:
        """See `Vlm`."""
        self.model.get_image_features(pixels)

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor, pixels: torch.Tensor) -> object:
        """See `Vlm`."""
        return self.model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)[self.cache_name]

    @torch.inference_mode()
    def decode(self, cache: object, tokens: int) -> None:
        """See `Vlm`."""
        token = torch.ones(1, 1, dtype=torch.long)
        for _ in range(tokens):
            token = self.model(input_ids=token, use_cache=True, **{self.cache_name: cache}).logits[:, -1:].argmax(-1)
            token = token.clamp(max=PLACEHOLDER - 1)


class Ours(_Torch):
    """Vision Mamba, VSS-L2 and Mamba."""

    cache_name = CACHE

    def __init__(self, sizes: VlmSizes):
        # transformers' default spread of 0.1 makes random Mamba layers overflow
        text = {"model_type": "mamba", "initializer_range": 0.02, "vocab_size": sizes.vocabulary, **sizes.mamba}
        vision = {"model_type": "vim", "image_size": sizes.side, "class_token": "none", **sizes.vim}
        config = vlmamba.VLMambaConfig(
            vision_config=vision, text_config=text, image_token_id=PLACEHOLDER, tie_word_embeddings=True
        )
        super().__init__(vlmamba.VLMambaForConditionalGeneration(config))

    def prefill_in_pieces(self, ids: torch.Tensor, pixels: torch.Tensor, size: int) -> object:
        """As `prefill`, but tokens are read, and tiles encoded, a piece of so many tokens at a time."""
        return self.model.prefix_state(ids, pixel_values=pixels, prefill_chunk_size=size)


class Llava(_Torch):
    """transformers' LLaVA: a SigLIP encoder, an MLP and Llama, with PyTorch's attention (sdpa)."""

    # transformers 5.24 renamed it, as it did Mamba's
    cache_name = "cache" if CACHE == "cache" else "past_key_values"

    def __init__(self, sizes: VlmSizes):
        vision = transformers.SiglipVisionConfig(image_size=sizes.side, **sizes.vit)
        text = transformers.LlamaConfig(
            vocab_size=sizes.vocabulary, max_position_embeddings=2**17, tie_word_embeddings=True, **sizes.llama
        )
        config = transformers.LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=PLACEHOLDER,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
            image_seq_length=(sizes.side // vision.patch_size) ** 2,
            tie_word_embeddings=True,
        )
        config._attn_implementation = "sdpa"
        super().__init__(transformers.LlavaForConditionalGeneration(config))

    def decode(self, cache: transformers.Cache, tokens: int) -> None:
        """See `Vlm`."""
        super().decode(cache, tokens)
        cache.crop(-tokens)


VLMS: dict[str, type[_Torch]] = {
    "vlmamba: Vim, VSS-L2, Mamba": Ours,
    "transformers: SigLIP, MLP, Llama": Llava,
}


def cache_bytes(cache: object) -> int:
    """Bytes of all tensors of a transformers cache."""
    tensors = [value for layer in cache.layers for value in _tensors(vars(layer))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for child in children for tensor in _tensors(child)]
