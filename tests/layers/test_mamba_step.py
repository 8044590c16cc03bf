# SPDX-License-Identifier: Apache-2.0
"""The native step of Mamba-1 layers against calling the modules, and when the modules have to be called."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache, FalconMambaConfig, FalconMambaForCausalLM, MambaConfig

from tests.close import VALUE, assert_close
from vlmamba import MambaForCausalLM, apply_kernels
from vlmamba.layers.linear import Int8Linear, use_few_rows
from vlmamba.layers.mamba_step import step_layers, step_mixer
from vlmamba.layers.quantize import quantize
from vlmamba.models.modeling_utils import CACHE
from vlmamba.ops import native, use_backend

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "available")

SIZES = {
    "even": {"hidden_size": 32, "state_size": 16, "time_step_rank": 4},
    "odd": {"hidden_size": 21, "state_size": 5, "time_step_rank": 3, "conv_kernel": 3, "use_bias": True},
    "wide": {"hidden_size": 70, "state_size": 33, "time_step_rank": 65, "use_conv_bias": False},
}


def layers(size: str = "even", **changes) -> nn.ModuleList:
    config = MambaConfig(num_hidden_layers=3, vocab_size=8, initializer_range=0.3, **{**SIZES[size], **changes})
    model = MambaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.backbone.layers


def run_modules(blocks: nn.ModuleList, x: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    with use_backend("torch"), torch.no_grad():
        for block in blocks:
            x = block(x, **{CACHE: cache})
    return x


def warm(blocks: nn.ModuleList, batch: int = 1) -> tuple[torch.Tensor, DynamicCache]:
    """The next token's hidden states and a cache after five tokens."""
    config, dtype = blocks[0].config, blocks[0].mixer.D.dtype
    cache = DynamicCache(config=config)
    run_modules(blocks, torch.randn(batch, 5, config.hidden_size).to(dtype), cache)
    return torch.randn(batch, 1, config.hidden_size).to(dtype), cache


@torch.no_grad()
def step(blocks, x, cache) -> torch.Tensor | None:
    return step_layers(blocks, x, cache)


def states(cache: DynamicCache) -> list[torch.Tensor]:
    return [v for layer in cache.layers for v in (layer.conv_states[0], layer.recurrent_states[0])]


def double(blocks: nn.ModuleList, cache: DynamicCache) -> tuple[nn.ModuleList, DynamicCache]:
    cache = copy.deepcopy(cache)
    for layer in cache.layers:
        layer.conv_states[0], layer.recurrent_states[0] = (
            v.double() for v in (layer.conv_states[0], layer.recurrent_states[0])
        )
    return copy.deepcopy(blocks).double(), cache


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.usefixtures("poisoned_memory")
def test_values_and_states(size, batch, threads):
    blocks = layers(size)
    x, cache = warm(blocks, batch)
    wide, wide_cache = double(blocks, cache)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for token in range(3):
            x, expected = step(blocks, x, cache), run_modules(wide, x.double(), wide_cache)
            assert_close(f"token {token}", x, expected)
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(states(cache), states(wide_cache), strict=True):
        assert_close("state", ours, theirs)


@pytest.mark.parametrize("target", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(target):
    library = native.library()
    before = library.vlmamba_target()
    if not library.vlmamba_choose_target(target.encode()):
        pytest.skip(f"this CPU has no {target}")
    try:
        for size in SIZES:
            blocks = layers(size)
            x, cache = warm(blocks, 2)
            wide, wide_cache = double(blocks, cache)
            assert_close(size, step(blocks, x, cache), run_modules(wide, x.double(), wide_cache))
    finally:
        library.vlmamba_choose_target(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    blocks = layers(residual_in_fp32=False).to(dtype)
    x, cache = warm(blocks)
    wide, wide_cache = double(blocks, cache)
    ours = step(blocks, x, cache)
    assert ours.dtype == dtype
    assert_close("y", ours, run_modules(wide, x.double(), wide_cache))
    assert states(cache)[0].dtype == dtype and states(cache)[1].dtype == torch.float32


def test_int8_and_few_rows_layers():
    for exchange in (quantize, use_few_rows):
        blocks = exchange(layers())
        x, cache = warm(blocks)
        other = copy.deepcopy(cache)
        assert_close("y", step(blocks, x, cache), run_modules(blocks, x, other).double(), LOOSE[exchange])


LOOSE = {quantize: {torch.float32: VALUE[torch.float16]}, use_few_rows: VALUE}


def test_mixer_alone():
    blocks = layers()
    x, cache = warm(blocks)
    wide, wide_cache = double(blocks, cache)
    with torch.no_grad():
        ours = step_mixer(blocks[0].mixer, x, cache)
        expected = wide[0].mixer(x.double(), **{CACHE: wide_cache})
    assert_close("y", ours, expected)
    assert_close("window", states(cache)[0], states(wide_cache)[0])


def test_new_weights_are_seen():
    blocks, other = layers(), layers()
    x, cache = warm(blocks)
    step(blocks, x, copy.deepcopy(cache))
    changes = [
        lambda: blocks.load_state_dict(other.state_dict()),
        lambda: setattr(blocks[1].mixer, "in_proj", copy.deepcopy(layers()[0].mixer.in_proj)),
        lambda: setattr(blocks[1].norm, "weight", nn.Parameter(torch.randn_like(blocks[1].norm.weight))),
        lambda: blocks[1].mixer.A_log.data.mul_(0.5),
        lambda: setattr(blocks[1].mixer.out_proj.weight, "data", torch.randn_like(blocks[1].mixer.out_proj.weight)),
        lambda: setattr(blocks[0].mixer, "x_proj", Int8Linear.of(blocks[0].mixer.x_proj)),
    ]
    for change in changes:
        change()
        ours, expected = step(blocks, x, copy.deepcopy(cache)), run_modules(blocks, x, copy.deepcopy(cache))
        assert_close("y", ours, expected.double(), LOOSE[quantize])


def with_lora(blocks):
    options = LoraConfig(r=2, target_modules=["in_proj", "x_proj"], init_lora_weights=False)
    get_peft_model(nn.Sequential(*blocks), options)


def with_own_forward(blocks):
    blocks[1].mixer.dt_proj.forward = lambda x: 0 * nn.functional.linear(x, blocks[1].mixer.dt_proj.weight)


CHANGES = {
    "LoRA": with_lora,
    "hook": lambda blocks: blocks[1].mixer.x_proj.register_forward_hook(lambda *_: None),
    "pre-hook": lambda blocks: blocks[1].mixer.register_forward_pre_hook(lambda *_: None),
    "hook of the convolution": lambda blocks: blocks[2].mixer.conv1d.register_forward_hook(lambda *_: None),
    "own forward": with_own_forward,
    "unknown layer": lambda blocks: setattr(blocks[1].mixer, "dt_proj", nn.Sequential(blocks[1].mixer.dt_proj)),
    "activation": lambda blocks: setattr(blocks[1].mixer, "activation", "gelu"),
    "double": lambda blocks: blocks.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_modules_are_called_where_somebody_could_tell(change):
    blocks = layers()
    x, cache = warm(blocks)
    kept = [state.clone() for state in states(cache)]
    assert step(blocks, x, copy.deepcopy(cache)) is not None
    CHANGES[change](blocks)
    assert step(blocks, x, cache) is None
    assert all(map(torch.equal, states(cache), kept)), "a refused step changed a state"


def test_modules_are_called_for_other_families():
    config = FalconMambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=8, state_size=4)
    blocks = apply_kernels(FalconMambaForCausalLM(config).eval()).backbone.layers
    x, cache = warm(blocks)
    assert step(blocks, x, cache) is None and torch.no_grad()(step_mixer)(blocks[0].mixer, x, cache) is None


def test_modules_are_called_for_other_calls():
    blocks = layers()
    x, cache = warm(blocks)
    wide, wide_cache = warm(blocks, batch=9)
    assert step_layers(blocks, x, cache) is None  # a gradient may be wanted
    assert step(blocks, x.expand(-1, 2, -1), cache) is None
    assert step(blocks, wide, wide_cache) is None
    assert step(blocks, x, wide_cache) is None
    assert step(blocks, x, DynamicCache(config=blocks[0].config)) is None
    assert step(blocks, x, None) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert step(blocks, x, cache) is None
    with use_backend("torch"):
        assert step(blocks, x, cache) is None
    assert step(blocks, x, cache) is not None
