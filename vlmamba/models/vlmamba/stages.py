# SPDX-License-Identifier: Apache-2.0
"""The stages of training: which parts of a model learn, and which stand still."""

from torch import nn

# stage -> the parts of a `VLMambaModel` that learn; the head belongs to the language model
STAGES: dict[str, tuple[str, ...]] = {
    "align": ("multi_modal_projector",),
    "finetune": ("multi_modal_projector", "language_model", "rationale"),
    "rationale": ("multi_modal_projector", "rationale"),
}


class StagedTrainingMixin:
    """Gives a `PreTrainedModel` the method `set_stage`."""

    def set_stage(self, stage: str) -> None:
        """Choose what learns; everything else gets no gradients.

        - "align": the connector alone (VL-Mamba, arXiv:2403.13600, section 3.3, first stage; LLaVA's pre-training).
        - "finetune": connector and language model (its second stage, and all of Cobra's training, arXiv:2403.14520).
        - "rationale": connector and rationale traversal (before "finetune"; as Meteor, arXiv:2405.15574, is described,
          whose training code is not published).

        The encoder learns in none of them, and an encoder that does not learn stays in evaluation mode when the model
        is put into training mode: neither dropout nor drop path acts in it, nor do batch norms count. The other parts
        follow the model's mode; they have nothing random, and checkpoint their activations in training mode only.
        Stages are not saved. Call this before adapters (peft) are added.

        Raises:
            ValueError: an unknown stage, or "rationale" for a model without a rationale traversal.

        Example:
            >>> model.set_stage("align")
            >>> optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        """
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}, expected one of {', '.join(STAGES)}")
        parts = dict(self.base_model.named_children())
        if stage == "rationale" and "rationale" not in parts:
            raise ValueError("stage is 'rationale', but the model has no rationale_config")
        learning = [parts[name] for name in STAGES[stage] if name in parts]
        if "language_model" in STAGES[stage] and (head := self.get_output_embeddings()) is not None:
            learning.append(head)
        self.requires_grad_(False)
        for part in learning:
            part.requires_grad_(True)
        self.train(self.training)


def rest_if_frozen(encoder: nn.Module) -> None:
    """Evaluation mode for an encoder of which nothing learns."""
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        encoder.eval()
