# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through its Python binding: a transformers Mamba model written as a GGUF file, then prefill and decode.

Needs `pip install llama-cpp-python gguf` (a C++ build of about five minutes). Its `Q8_0` keeps a scale for every 32
weights; weights whose rows are no multiple of 32 long (`dt_proj` of small models) and the convolution stay in float32.
"""

from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path

import numpy as np
import torch
from transformers import MambaConfig, MambaForCausalLM

PRECISIONS = ("F32", "Q8_0")
_BLOCK = 32


def reason() -> str:
    """Why it cannot take part; empty when it can."""
    missing = [name for name in ("llama_cpp", "gguf") if not util.find_spec(name)]
    return f"{' and '.join(missing)} not installed" if missing else ""


def write_gguf(model: MambaForCausalLM, path: Path, precision: str = "F32") -> Path:
    """Write the model in llama.cpp's format, without a tokenizer.

    Args:
        model: any size; its head must be tied to the embeddings or have a weight of its own.
        path: of the file. precision: one of `PRECISIONS`.

    Returns:
        path.
    """
    import gguf

    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    writer = gguf.GGUFWriter(str(path), "mamba")
    _write_config(writer, model.config)
    wanted = gguf.GGMLQuantizationType[precision]
    for name, weight in _tensors(model):
        quantized = weight.dim() == 2 and weight.shape[-1] % _BLOCK == 0 and "conv1d" not in name
        kind = wanted if quantized and name.endswith(".weight") else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_config(writer, config: MambaConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(2**20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(int(config.time_step_rank))
    writer.add_tokenizer_model("none")


def _tensors(model: MambaForCausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    weights = {name: value.detach().float().contiguous() for name, value in model.state_dict().items()}
    yield "token_embd.weight", weights["backbone.embeddings.weight"]
    yield "output_norm.weight", weights["backbone.norm_f.weight"]
    if not model.config.tie_word_embeddings:
        yield "output.weight", weights["lm_head.weight"]
    for i in range(model.config.num_hidden_layers):
        ours, theirs = f"backbone.layers.{i}", f"blk.{i}"
        yield f"{theirs}.attn_norm.weight", weights[f"{ours}.norm.weight"]
        yield f"{theirs}.ssm_conv1d.weight", weights[f"{ours}.mixer.conv1d.weight"].squeeze(1)
        yield f"{theirs}.ssm_conv1d.bias", weights[f"{ours}.mixer.conv1d.bias"]
        yield f"{theirs}.ssm_a", -torch.exp(weights[f"{ours}.mixer.A_log"])
        yield f"{theirs}.ssm_d", weights[f"{ours}.mixer.D"]
        yield f"{theirs}.ssm_dt.bias", weights[f"{ours}.mixer.dt_proj.bias"]
        for name, projection in (("in", "in_proj"), ("x", "x_proj"), ("dt", "dt_proj"), ("out", "out_proj")):
            yield f"{theirs}.ssm_{name}.weight", weights[f"{ours}.mixer.{projection}.weight"]


class LlamaCpp:
    """A loaded GGUF file with one sequence's state. Close it to give the memory back.

    Args:
        path: from `write_gguf`.
        threads: of both prefill and decode.
        batch: the largest number of tokens in one call.
    """

    def __init__(self, path: Path, threads: int, batch: int = 2048):
        import llama_cpp

        self._lib = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = batch
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def reset(self) -> None:
        """Forget the sequence."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def feed(self, tokens: Sequence[int]) -> torch.Tensor:
        """Go on with these tokens, one (decode) or many (prefill).

        Returns:
            Logits of the token after the last, `[vocab_size]`.
        """
        array = (self._lib.llama_token * len(tokens))(*tokens)
        failed = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(array, len(tokens)))
        if failed:
            raise RuntimeError(f"llama_decode: error {failed}")
        logits = self._lib.llama_get_logits_ith(self._context, -1)
        return torch.from_numpy(np.ctypeslib.as_array(logits, shape=(self._size,)).copy())

    def set_threads(self, threads: int) -> None:
        """Of both prefill and decode, from now on."""
        self._lib.llama_set_n_threads(self._context, threads, threads)

    def close(self) -> None:
        """Give the memory back."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)
