# SPDX-License-Identifier: Apache-2.0
"""`vlmamba convert`: what it writes, and the one line it says about every mistake."""

import json

import pytest
import torch
from transformers import AutoModelForImageClassification

from tests import golden

from .command import refused, run


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"model": golden.load("vim-midcls").weights}, tmp_path / "vim.pth")
    return tmp_path / "vim.pth"


def test_a_folder_is_written(tmp_path, checkpoint):
    arguments = json.dumps(golden.load("vim-midcls").arguments)
    (tmp_path / "arguments.json").write_text(arguments)
    for given, name in ((arguments, "one"), (tmp_path / "arguments.json", "two")):
        result = run("convert", "vim", checkpoint, tmp_path / name, "--arguments", given)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("VimForImageClassification, 0.")
        AutoModelForImageClassification.from_pretrained(tmp_path / name)


def test_presets_are_listed():
    result = run("convert", "vmamba", "--list")
    assert result.exit_code == 0 and {"tiny", "small", "base"} <= set(result.stdout.split())


def test_mistakes_cost_one_line_and_write_nothing(tmp_path, checkpoint):
    out = tmp_path / "out"
    refused(run("convert", "resnet", checkpoint, out), "unknown family 'resnet'")
    refused(run("convert", "vim"), "argument CHECKPOINT is missing")
    refused(run("convert", "vim", checkpoint), "argument OUT_DIR is missing")
    refused(run("convert", "cobra", "none.pt", out), "checkpoint 'none.pt': there is no such file")
    refused(run("convert", "vim", tmp_path / "no.pth", out), "no.pth", "there is no such file")
    refused(run("convert", "vim", checkpoint, out, "--preset", "huge"), "no preset 'huge'", "tiny")
    refused(run("convert", "vim", checkpoint, out, "--preset", "tiny"), "does not fit", "has shape")
    refused(run("convert", "vim", checkpoint, out, "--arguments", "{"), "--arguments: not JSON")
    refused(run("convert", "vim", checkpoint, out, "--arguments", "nowhere"), "neither a JSON object nor a file")
    refused(run("convert", "vim", checkpoint, out, "--arguments", "{}", "--preset", "tiny"), "both given")
    refused(run("convert", "vim", checkpoint, out, "--task", "depth"), "no task 'depth'")
    refused(run("convert", "vim", checkpoint, checkpoint), "is a file, expected a folder")
    refused(run("convert", "vim", checkpoint, tmp_path), "is not empty", "--overwrite")
    assert not out.exists()
