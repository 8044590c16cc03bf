# SPDX-License-Identifier: Apache-2.0
"""Stages of training: what gets gradients, what a step changes, what stays in evaluation mode."""

import copy

import pytest
import torch

from tests.models.tiny import tiny_model, tiny_text_config
from vlmamba import VLMambaForConditionalGeneration

IDS = torch.tensor([[5, 4, 4, 4, 4, 7, 8, 9, 6, 10, 11]])
PIXELS = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PARTS = {
    "align": ["model.multi_modal_projector."],
    "finetune": ["model.multi_modal_projector.", "model.language_model.", "model.rationale.", "lm_head."],
    "rationale": ["model.multi_modal_projector.", "model.rationale."],
}
THINKING = {"rationale_config": tiny_text_config(), "tor_token_id": 12}


def thinking_ids() -> torch.Tensor:
    return torch.cat([IDS[:, :8], torch.tensor([[12, 12]]), IDS[:, 8:]], 1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stage", PARTS)
def test_a_step_changes_the_parts_of_the_stage_and_no_others(stage, tied):
    model = tiny_model(tie_word_embeddings=tied, **THINKING).train()
    model.set_stage(stage)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(thinking_ids(), PIXELS, labels=thinking_ids()).loss.backward()
    learning = {n for n, _ in model.named_parameters() if n.startswith(tuple(PARTS[stage]))}
    assert {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()} == learning
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == learning


def test_a_later_stage_lifts_what_an_earlier_one_froze():
    model = tiny_model()
    model.set_stage("align")
    model.set_stage("finetune")
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith("model.vision_tower.")}


def test_a_frozen_encoder_draws_nothing_at_random():
    vision = {"model_type": "vim", "hidden_size": 16, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    model = tiny_model(vision_config={**vision, "drop_path_rate": 0.9})
    quiet = model(IDS, PIXELS).logits
    model.set_stage("finetune")
    assert not model.training
    model.train()
    assert model.training and model.model.language_model.training and not model.model.vision_tower.training
    assert torch.equal(model(IDS, PIXELS).logits, quiet)
    model.requires_grad_(True).train()
    assert model.model.vision_tower.training
    assert not torch.equal(model(IDS, PIXELS).logits, quiet)


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_activation_checkpoints_change_no_gradient(stage):
    gradients = []
    for checkpoints in (False, True):
        model = tiny_model().train()
        model.set_stage(stage)
        if checkpoints:
            model.gradient_checkpointing_enable()
        model(IDS, PIXELS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_headless_model_has_stages_too():
    model = tiny_model().model
    model.set_stage("align")
    learning = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {"multi_modal_projector"}


def test_stages_are_not_saved(tmp_path):
    model = tiny_model()
    model.set_stage("align")
    model.save_pretrained(tmp_path)
    assert all(p.requires_grad for p in VLMambaForConditionalGeneration.from_pretrained(tmp_path).parameters())


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="stage is 'pretrain', expected one of align, finetune, rationale"):
        tiny_model().set_stage("pretrain")
    with pytest.raises(ValueError, match="stage is 'rationale', but the model has no rationale_config"):
        tiny_model().set_stage("rationale")
