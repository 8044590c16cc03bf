# SPDX-License-Identifier: Apache-2.0
"""Mamba language models with the same random weights, behind one face: `prefill`, then `step` by `step`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeVar

import torch
import transformers
from transformers.models.mamba.modeling_mamba import MambaCausalLMOutput

import vlmamba
from benchmarks.peers import llama_cpp

Model = TypeVar("Model", bound=torch.nn.Module)

# transformers 5.24 renamed it
CACHE = next(n for n in ("cache", "cache_params") if n in {f.name for f in dataclasses.fields(MambaCausalLMOutput)})


class LanguageModel(Protocol):
    """What is measured."""

    def prefill(self, ids: list[int]) -> torch.Tensor:
        """Read a prompt from an empty state; logits `[V]` after its last token."""

    def step(self, token: int) -> torch.Tensor:
        """Read one more token; logits `[V]`."""

    def set_threads(self, count: int) -> None:
        """Run on so many threads."""


class TorchModel:
    """A transformers-like model.

    Args:
        model: called with ids and its cache.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.cache = None

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> torch.Tensor:
        """See `LanguageModel`."""
        out = self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        self.cache = out[CACHE]
        return out.logits[0, -1]

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        """See `LanguageModel`."""
        out = self.model(torch.tensor([[token]]), use_cache=True, **{CACHE: self.cache})
        return out.logits[0, -1]

    def set_threads(self, count: int) -> None:
        """See `LanguageModel`."""
        torch.set_num_threads(count)


class LlamaCppModel:
    """A model in llama.cpp.

    Args:
        model: transformers', whose weights it takes.
        precision: F32 or Q8_0.
    """

    def __init__(self, model: transformers.MambaForCausalLM, precision: str):
        with TemporaryDirectory() as folder:
            path = llama_cpp.write_gguf(model, Path(folder, "model.gguf"), precision)
            self.model = llama_cpp.LlamaCpp(path, threads=torch.get_num_threads())

    def prefill(self, ids: list[int]) -> torch.Tensor:
        """See `LanguageModel`."""
        self.model.reset()
        return self.model.feed(ids)

    def step(self, token: int) -> torch.Tensor:
        """See `LanguageModel`."""
        return self.model.feed([token])

    def set_threads(self, count: int) -> None:
        """See `LanguageModel`."""
        self.model.set_threads(count)


def random_weights(sizes: dict[str, int], seed: int = 0) -> tuple[transformers.MambaConfig, dict[str, torch.Tensor]]:
    """A config and its weights.

    Their spread is 0.02: with transformers' default of 0.1 for Mamba, random layers amplify the rounding errors of low
    precision until nothing of the logits is left to compare.
    """
    torch.manual_seed(seed)
    config = transformers.MambaConfig(**sizes, initializer_range=0.02)
    return config, transformers.MambaForCausalLM(config).state_dict()


Loader = Callable[[transformers.MambaConfig, dict[str, torch.Tensor]], LanguageModel]


def _filled(kind: type[Model], config: transformers.MambaConfig, weights: dict[str, torch.Tensor]) -> Model:
    model = kind(config)
    model.load_state_dict(weights)
    return model.eval()


def _torch_model(kind: type[torch.nn.Module], dtype: torch.dtype) -> Loader:
    return lambda config, weights: TorchModel(_filled(kind, config, weights).to(dtype))


def _int8(config, weights) -> TorchModel:
    return TorchModel(vlmamba.quantize(_filled(vlmamba.MambaForCausalLM, config, weights)))


def _llama_cpp(precision: str) -> Loader:
    return lambda *source: LlamaCppModel(_filled(transformers.MambaForCausalLM, *source), precision)


def _without_quantize() -> str:
    return "" if "quantize" in vlmamba.__all__ else "vlmamba.quantize is not there yet"


def _nothing() -> str:
    return ""


# name -> (loader, why it cannot take part)
LANGUAGE_MODELS: dict[str, tuple[Loader, Callable[[], str]]] = {
    "transformers float32": (_torch_model(transformers.MambaForCausalLM, torch.float32), _nothing),
    "vlmamba float32": (_torch_model(vlmamba.MambaForCausalLM, torch.float32), _nothing),
    "vlmamba bfloat16": (_torch_model(vlmamba.MambaForCausalLM, torch.bfloat16), _nothing),
    "vlmamba int8": (_int8, _without_quantize),
    "llama.cpp float32": (_llama_cpp("F32"), llama_cpp.reason),
    "llama.cpp Q8_0": (_llama_cpp("Q8_0"), llama_cpp.reason),
    "transformers bfloat16": (_torch_model(transformers.MambaForCausalLM, torch.bfloat16), _nothing),
}
