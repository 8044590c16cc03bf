# SPDX-License-Identifier: Apache-2.0
"""The command itself: help, version, environment."""

import json
from pathlib import Path

import pytest
import torch

import vlmamba

from .command import answered, run


def test_version():
    assert answered(run("--version")) == f"vlmamba {vlmamba.__version__}\n"


@pytest.mark.parametrize("command", ["", "ask", "chat", "env"])
def test_help_teaches(command):
    text = answered(run(*command.split(), "--help"))
    assert "Usage:" in text
    assert command == "env" or f"vlmamba {command or 'ask'} photo.png" in text


def test_no_arguments_show_the_help():
    assert "Commands" in answered(run())


def test_env():
    found = json.loads(answered(run("env", "--json")))
    assert found["versions"]["vlmamba"] == vlmamba.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"][0]["name"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert [backend["name"] for backend in found["backends"]] == list(vlmamba.ops.BACKENDS)
    in_use = [backend["name"] for backend in found["backends"] if "cpu" in backend["in_use"]]
    assert in_use == [vlmamba.ops.backend_for(torch.empty(0))]
    assert found["bundled_model"]["present"] == Path(found["bundled_model"]["folder"]).is_dir()


def test_env_for_people():
    text = answered(run("env"))
    for backend in vlmamba.ops.BACKENDS:
        assert f"{backend}: " in text


def test_env_tells_why_a_backend_is_missing(monkeypatch):
    from vlmamba.cli import env

    class Missing:
        available = staticmethod(lambda: False)
        reason = staticmethod(lambda: "no compiler")

    monkeypatch.setattr(env.util, "find_spec", lambda name: name == "vlmamba.ops.torch" or None)
    monkeypatch.setattr(env, "import_module", lambda name: Missing)
    backends = {backend["name"]: backend for backend in json.loads(answered(run("env", "--json")))["backends"]}
    assert backends["torch"]["available"] is False and backends["torch"]["reason"] == "no compiler"
    assert backends["reference"]["available"] is True
