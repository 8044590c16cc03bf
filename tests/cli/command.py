# SPDX-License-Identifier: Apache-2.0
"""The `vlmamba` command as tests call it, and model folders that they damage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

import vlmamba
from vlmamba.cli.main import app

ROOT = Path(vlmamba.__file__).parents[1]
COMMAND = [sys.executable, "-m", "vlmamba.cli.main"]


def run(*arguments: object, **options) -> Result:
    """What the command does with these arguments."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def answered(result: Result) -> str:
    """What is on stdout, when nothing went wrong."""
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def refused(result: Result, *words: str, code: int = 2) -> None:
    """One line on stderr with these words, nothing on stdout."""
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and result.stderr.endswith("\n")
    for word in words:
        assert word in result.stderr


def copy_of(folder: Path, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def edit(folder: Path, name: str, **changes: object) -> None:
    """Change entries of a JSON file."""
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


def start(command: list[str], **options) -> subprocess.Popen:
    """A process of its own, as a user's shell would start it."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | {"PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, **{**pipes, "text": True, **options})
