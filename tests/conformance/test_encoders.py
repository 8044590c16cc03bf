# SPDX-License-Identifier: Apache-2.0
"""transformers' model and backbone tests on every vision encoder and on several side by side."""

import unittest

from transformers.backbone_utils import BackboneMixin

import vlmamba
from tests.conformance.harness import BackboneTesterMixin, ConfigTester, ModelTesterMixin
from tests.conformance.testers import ModelTester, pixels
from tests.models.encoders import config_of
from vlmamba import FusedVisionConfig, FusedVisionModel
from vlmamba.models import ENCODERS

SIDE = 32
# whose backbones take the tests of models too: one encoder of tokens, one of maps, as the families share those
WHOLE = ("vim", "vmamba")
# tokens beside those of the patches
EXTRA = {"vim": 1, "mambar": 4}


class EncoderTests(ModelTesterMixin):
    has_attentions = False
    test_resize_embeddings = False

    def setUp(self):
        config = self.config()
        self.model_tester = ModelTester(
            config, {"pixel_values": pixels(config.num_channels, SIDE)}, **self.first_state(config)
        )
        self.config_tester = ConfigTester(
            self, type(config), has_text_modality=False, common_properties=["hidden_size", "num_channels"]
        )

    def first_state(self, config):
        """How many hidden states there are, and the shape of the first."""
        return {
            "expected_num_hidden_layers": config.num_stages + 1,
            "num_hidden_layers": 2,
            "seq_length": (SIDE // config.stage_strides[0]) ** 2 + EXTRA.get(config.model_type, 0),
            "hidden_size": config.stage_widths[0],
        }

    def test_hidden_states_output(self):
        # a backbone's are maps
        self.all_model_classes = [kind for kind in self.all_model_classes if not issubclass(kind, BackboneMixin)]
        super().test_hidden_states_output()

    def test_config(self):
        self.config_tester.run_common_tests()


class BackboneTests(BackboneTesterMixin):
    has_attentions = False

    def setUp(self):
        config = self.config()
        config.out_features = config.stage_names[-2:]
        self.config_class = type(config)
        self.model_tester = ModelTester(config, {"pixel_values": pixels(config.num_channels, SIDE)})


for _family, _name in ENCODERS.items():
    _classes = [getattr(vlmamba, f"{_name}{kind}") for kind in ("Model", "ForImageClassification", "Backbone")]
    _members = {"config": staticmethod(lambda family=_family: config_of(family, image_size=SIDE))}
    for _tests, _models in (
        (EncoderTests, _classes if _family in WHOLE else _classes[:2]),
        (BackboneTests, _classes[2:]),
    ):
        _kind = f"{_name}{_tests.__name__.removesuffix('s')}"
        globals()[_kind] = type(_kind, (_tests, unittest.TestCase), {"all_model_classes": tuple(_models), **_members})


class FusedVisionTest(EncoderTests, unittest.TestCase):
    all_model_classes = (FusedVisionModel,)

    def config(self):
        return FusedVisionConfig(
            encoders=[config_of("vim", image_size=SIDE), config_of("plainmamba", image_size=SIDE)],
            feature_layers=[-1, -2],
        )

    def first_state(self, config):
        return {"num_hidden_layers": 2}
