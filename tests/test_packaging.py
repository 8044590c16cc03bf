# SPDX-License-Identifier: Apache-2.0
"""What happens to the native library when the package is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_without_a_compiler_the_installation_goes_on_and_says_so(tmp_path):
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "build_ext", "--force", "--build-temp", str(tmp_path), "--build-lib"]
    missing = str(tmp_path / "no-compiler")
    environment = os.environ | {"CC": missing, "CXX": missing}
    done = subprocess.run(
        [*command, str(tmp_path / "built")], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vlmamba:")]
    assert "CPU kernels not built" in line and line.endswith("the ops will run on PyTorch")
    assert not list((tmp_path / "built").rglob("_native*"))
