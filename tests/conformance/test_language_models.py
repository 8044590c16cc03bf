# SPDX-License-Identifier: Apache-2.0
"""transformers' model tests on the language models that this library loads by themselves."""

import unittest

import torch
from transformers import CONFIG_MAPPING

from tests.conformance.harness import ConfigTester, ModelTesterMixin, TrainingTesterMixin
from tests.conformance.testers import ModelTester, tokens
from tests.models.tiny import tiny_text_config
from vlmamba import Mamba2ForCausalLM, MambaForCausalLM


class LanguageModelTests(ModelTesterMixin, TrainingTesterMixin):
    has_attentions = False
    model_tester = None

    def setUp(self):
        fields = {**tiny_text_config(self.family), "num_hidden_layers": 2, "initializer_range": 0.02}
        config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
        ids = tokens(config.vocab_size)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.model_tester = ModelTester(
            config, inputs, num_hidden_layers=2, seq_length=ids.shape[1], hidden_size=config.hidden_size
        )
        self.config_tester = ConfigTester(self, type(config), common_properties=["hidden_size", "num_hidden_layers"])

    def test_config(self):
        self.config_tester.run_common_tests()


class MambaTest(LanguageModelTests, unittest.TestCase):
    all_model_classes = (MambaForCausalLM,)
    family = "mamba"


class Mamba2Test(LanguageModelTests, unittest.TestCase):
    all_model_classes = (Mamba2ForCausalLM,)
    family = "mamba2"
