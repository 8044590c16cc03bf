# SPDX-License-Identifier: Apache-2.0
"""transformers' model tests on the VLM, with every kind of language model and with a fused tower."""

import unittest

import torch

from tests.conformance.harness import ConfigTester, ModelTesterMixin, TrainingTesterMixin
from tests.conformance.testers import ModelTester, pixels, tokens
from tests.models.tiny import tiny_config, tiny_text_config
from vlmamba import VLMambaConfig, VLMambaForConditionalGeneration, VLMambaModel

VISION = {"model_type": "vim", "hidden_size": 16, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
FUSED = {"model_type": "fused_vision", "encoders": [VISION, {**VISION, "hidden_size": 8}], "feature_layers": [-1, -1]}


class VLMambaTests(ModelTesterMixin, TrainingTesterMixin):
    all_model_classes = (VLMambaModel, VLMambaForConditionalGeneration)
    _is_composite = True
    has_attentions = False
    model_tester = None
    family = "mamba"
    vision = VISION

    def options(self, text):
        """Arguments of the config beside its encoder and its language model `text`, and tokens that end prompts."""
        return {}, []

    def setUp(self):
        text = {**tiny_text_config(self.family), "num_hidden_layers": 2, "initializer_range": 0.02}
        options, end = self.options(text)
        config = tiny_config(text_config=text, vision_config=self.vision, **options)
        ids = tokens(text["vocab_size"], images=config.image_seq_length)
        if end:
            ids = torch.cat([ids, torch.tensor(end).expand(len(ids), -1)], 1)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels(getattr(config.vision_config, "num_channels", 3)),
        }
        self.model_tester = ModelTester(
            config,
            inputs,
            num_hidden_layers=2,
            seq_length=ids.shape[1],
            hidden_size=text["hidden_size"],
            text_config=text,
            vision_config=self.vision,
            causal_lm_class=VLMambaForConditionalGeneration,
        )
        self.config_tester = ConfigTester(self, VLMambaConfig, has_text_modality=False, image_token_id=4)

    def test_training_overfit(self):
        # it makes a prompt of all tokens, without images
        config = self.model_tester.config
        config.vocab_size, config.image_token_id = config.text_config.vocab_size, config.text_config.vocab_size
        super().test_training_overfit()

    def test_config(self):
        self.config_tester.run_common_tests()


class VLMambaTest(VLMambaTests, unittest.TestCase):
    pass


class VLMambaOfMamba2Test(VLMambaTests, unittest.TestCase):
    family = "mamba2"


class VLMambaOfFalconMambaTest(VLMambaTests, unittest.TestCase):
    family = "falcon_mamba"


class VLMambaOfFusedTowerTest(VLMambaTests, unittest.TestCase):
    vision = FUSED

    def options(self, text):
        return {"projector_config": {"projector_type": "fused_ldp", "pool_size": 1}}, []


class VLMambaOfRationaleTest(VLMambaTests, unittest.TestCase):
    def options(self, text):
        tor = text["vocab_size"] - 1
        return {"rationale_config": {**text, "hidden_size": 16, "num_hidden_layers": 1}, "tor_token_id": tor}, [
            tor,
            tor,
        ]
