# SPDX-License-Identifier: Apache-2.0
"""The model that steps natively gives what transformers' loop over the layers gives."""

import copy

import pytest
import torch
from transformers import MambaConfig

from tests.close import assert_close
from vlmamba import MambaForCausalLM
from vlmamba.layers import mamba_step
from vlmamba.layers.stepping import MambaModel
from vlmamba.models.modeling_utils import CACHE
from vlmamba.ops import native, use_backend

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "available")

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


@pytest.fixture
def model() -> MambaForCausalLM:
    config = MambaConfig(hidden_size=24, num_hidden_layers=2, vocab_size=50, state_size=4, initializer_range=0.3)
    model = MambaForCausalLM(config).eval()
    assert type(model.backbone) is MambaModel
    return model


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Grows by the number of layers with every native step."""
    counted, run = [], mamba_step.run_mamba_layers
    monkeypatch.setattr(mamba_step, "run_mamba_layers", lambda layers, x: counted.append(len(layers)) or run(layers, x))
    return counted


@torch.no_grad()
def test_generation_steps_and_agrees(model, steps):
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = model.generate(IDS, **options)
    assert steps == [2] * 5  # the first new token comes from the prompt
    with use_backend("torch"):
        assert torch.equal(model.generate(IDS, **options), tokens)
        whole = model(tokens[:, :-1]).logits.argmax(-1)[:, IDS.shape[1] - 1 :]
    assert torch.equal(tokens[:, IDS.shape[1] :], whole)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False, None])
@pytest.mark.parametrize("embedded", [True, False])
def test_results_are_transformers_own(model, steps, use_cache, embedded):
    backbone = model.backbone
    cache = backbone(IDS, use_cache=True)[CACHE]
    token = {"inputs_embeds": backbone.embeddings(IDS[:, :1])} if embedded else {"input_ids": IDS[:, :1]}
    other = copy.deepcopy(cache)
    with use_backend("torch"):
        expected = backbone(**token, **{CACHE: other}, use_cache=use_cache)
    ours = backbone(**token, **{CACHE: cache}, use_cache=use_cache)
    assert steps == [2] and list(ours) == list(expected)
    assert_close("last", ours.last_hidden_state, expected.last_hidden_state.double())


@torch.no_grad()
@pytest.mark.parametrize(
    "asked",
    [{"output_hidden_states": True}, {"return_dict": False}, {"attention_mask": torch.ones(2, 1, dtype=torch.long)}],
    ids=lambda asked: next(iter(asked)),
)
def test_other_results_come_from_the_layers(model, steps, asked):
    cache = model.backbone(IDS, use_cache=True)[CACHE]
    result = model.backbone(IDS[:, :1], **{CACHE: cache}, **asked)
    assert not steps
    assert isinstance(result, tuple) or result.last_hidden_state.shape == (2, 1, 24)
    if "output_hidden_states" in asked:
        assert len(result.hidden_states) == 3


def test_wrong_arguments_are_transformers_business(model):
    cache = model.backbone(IDS, use_cache=True)[CACHE]
    with pytest.raises(ValueError, match="exactly one"):
        model.backbone(**{CACHE: cache})
