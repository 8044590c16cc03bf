# SPDX-License-Identifier: Apache-2.0
import importlib
import tomllib
from pathlib import Path

import pytest

import vlmamba

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", vlmamba.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(vlmamba, name)
    assert value is not None and name in dir(vlmamba)
    if callable(value):
        assert value.__doc__


@pytest.mark.parametrize(
    "module", ["vlmamba.ops", "vlmamba.ops.compat", "vlmamba.scans", "vlmamba.data", "vlmamba.metrics"]
)
def test_every_name_a_module_offers_is_there(module):
    offered = importlib.import_module(module)
    assert all(hasattr(offered, name) for name in offered.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vlmamba.nothing  # noqa: B018


def test_registering_twice_does_no_harm():
    importlib.import_module("vlmamba.auto").register()


def test_every_file_names_its_licence():
    folders = ("vlmamba", "training", "eval", "examples", "tests")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        assert not text or text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path


def test_the_entry_point_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, attribute = project["scripts"]["vlmamba"].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
