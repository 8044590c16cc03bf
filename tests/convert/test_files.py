# SPDX-License-Identifier: Apache-2.0
import argparse
import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlmamba.convert import read_checkpoint

WEIGHTS = {"a.weight": torch.arange(3.0), "b": torch.zeros(2, 2)}


class Command:
    """Pickled, it is a call of `os.system`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS, "epoch": 3},
        {"state_dict": {f"module.{key}": value for key, value in WEIGHTS.items()}, "meta": {"seed": 1}},
        {"state_dict_ema": WEIGHTS, "args": argparse.Namespace(lr=0.1, sizes=[1])},
        {"model": WEIGHTS, "scores": np.arange(3.0), "best": np.float64(81.2), "steps": np.int64(4)},
    ],
    ids=lambda content: ",".join(content),
)
def test_weights_are_found_wherever_training_scripts_put_them(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pth")
    found = read_checkpoint(tmp_path / "checkpoint.pth")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[key], WEIGHTS[key]) for key in WEIGHTS)


def test_settings_of_foreign_classes_are_read_as_nothing(tmp_path, monkeypatch):
    """As VMamba's checkpoints hold a yacs config, which need not be installed."""
    import sys
    from types import ModuleType

    module = ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    torch.save({"model": WEIGHTS, "config": module.CfgNode(lr=0.1)}, tmp_path / "checkpoint.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")
    assert read_checkpoint(tmp_path / "checkpoint.pth").keys() == WEIGHTS.keys()


def test_the_key_of_the_weights_can_be_named(tmp_path):
    torch.save({"model": WEIGHTS, "model_ema": {"c": torch.ones(1)}}, tmp_path / "checkpoint.pth")
    assert list(read_checkpoint(tmp_path / "checkpoint.pth", "model_ema")) == ["c"]
    with pytest.raises(ValueError, match="has no weights under 'ema'; it has model, model_ema"):
        read_checkpoint(tmp_path / "checkpoint.pth", "ema")


def test_safetensors_are_read(tmp_path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path / "model.safetensors").keys() == WEIGHTS.keys()


def test_code_is_refused_and_never_run(tmp_path):
    torch.save({"model": WEIGHTS, "more": Command(tmp_path / "ran")}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"checkpoint\.pth' holds \w+\.system, which is code and is not run"):
        read_checkpoint(tmp_path / "checkpoint.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.pth", None, "there is no such file"),
        ("damaged.pth", b"damaged" * 40, "is damaged, or no file of torch.save"),
        ("damaged.safetensors", b"damaged" * 40, "is truncated or damaged"),
        ("empty.pth", b"", "is damaged"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)}'.* {words}|{re.escape(name)}': {words}"):
        read_checkpoint(tmp_path / name)


def test_a_file_without_weights_is_named(tmp_path):
    for content, words in (([1, 2], "a list"), ({"epoch": 1, "best": 2.0}, "best, epoch")):
        torch.save(content, tmp_path / "checkpoint.pth")
        with pytest.raises(ValueError, match=f"has no state dict; it has {words}"):
            read_checkpoint(tmp_path / "checkpoint.pth")
