# SPDX-License-Identifier: Apache-2.0
"""Runs `triton_cases.py` in a process of its own: kernels are interpreted or compiled, whichever they are made for."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("triton")
CASES = Path(__file__).with_name("triton_cases.py")


def test_kernels_equal_the_definitions(tmp_path):
    report = tmp_path / "report.xml"
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "VLMAMBA_BACKEND": ""}
    # a number out of range shows a row out of range: memory that the kernels must not read
    options = ["-q", "-p", "no:cacheprovider", "-W", "error::RuntimeWarning", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, str(CASES)]
    done = subprocess.run(command, env=environment, cwd=CASES.parents[2], capture_output=True, text=True)
    assert report.exists(), done.stdout + done.stderr
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [f"{case.get('name')}: {found.get('message')}" for case in cases for found in case if found.tag != "skipped"]
    assert not bad, "\n".join(bad)
    assert done.returncode == 0 and cases, done.stdout
