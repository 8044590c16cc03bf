# SPDX-License-Identifier: Apache-2.0
"""transformers' own model tests, imported out of its source distribution (`fetch.py` unpacks it).

The wheel has no tests. The source distribution has the common ones, without some modules that they import: those are
replaced by the least that lets them load.
"""

import importlib
import os
import sys
import types
from pathlib import Path

import pytest
import transformers
from transformers.models.auto import modeling_auto

from vlmamba.models import ENCODERS

VARIABLE = "VLMAMBA_TRANSFORMERS_TESTS"
PACKAGE = "transformers_tests"
# fields that every config has, and values that are not the defaults
CONFIG_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "architectures": ["VimModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}
PICTURE = Path(__file__).parents[2] / "examples" / "castle.png"


def _folder() -> Path:
    """The folder `tests` of the unpacked source distribution; without it the module that asks is skipped."""
    root = os.environ.get(VARIABLE)
    if not root:
        pytest.skip(
            f"{VARIABLE} is not set: python tests/conformance/fetch.py FOLDER downloads what it names",
            allow_module_level=True,
        )
    folder = Path(root) / "tests"
    if not (folder / "test_modeling_common.py").is_file():
        raise FileNotFoundError(f"{VARIABLE} is {root}, expected a folder with tests/test_modeling_common.py")
    return folder


def _local(url: str) -> str:
    """A picture of this repository in place of one that would be downloaded."""
    return str(PICTURE) if url.endswith((".png", ".jpg")) else url


def _stub(name: str, **members: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def _load(name: str) -> types.ModuleType:
    return importlib.import_module(f"{PACKAGE}.{name}")


_tests = types.ModuleType(PACKAGE)
_tests.__path__ = [str(_folder())]
sys.modules[PACKAGE] = _tests
_stub(f"{PACKAGE}.exporters", __path__=[])
_stub(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
_stub(f"{PACKAGE}.generation", __path__=[])
_stub(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
_stub(f"{PACKAGE}.utils", __path__=[])
_stub(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=CONFIG_FIELDS)
_stub("fetch_hub_objects_for_ci", url_to_local_path=_local)

with pytest.MonkeyPatch.context() as patch:
    # it would import transformers a second time, from a source tree around the tests
    patch.setattr(transformers.utils, "direct_transformers_import", lambda path: transformers)
    ConfigTester = _load("test_configuration_common").ConfigTester
ModelTesterMixin = _load("test_modeling_common").ModelTesterMixin
BackboneTesterMixin = _load("test_backbone_common").BackboneTesterMixin
TrainingTesterMixin = _load("test_training_mixin").TrainingTesterMixin
ProcessorTesterMixin = _load("test_processing_common").ProcessorTesterMixin
_images = _load("test_image_processing_common")
ImageProcessingTester = _images.ImageProcessingTester
ImageProcessingTestMixin = _images.ImageProcessingTestMixin

# the tests tell from tables of class names which labels a class takes
modeling_auto.MODEL_MAPPING_NAMES.update({"vlmamba": "VLMambaModel", "fused_vision": "FusedVisionModel"})
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["vlmamba"] = "VLMambaForConditionalGeneration"
for _table, _kind in (
    (modeling_auto.MODEL_MAPPING_NAMES, "Model"),
    (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "ForImageClassification"),
    (modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES, "Backbone"),
):
    _table.update({family: f"{name}{_kind}" for family, name in ENCODERS.items()})
