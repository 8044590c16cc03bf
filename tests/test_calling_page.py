# SPDX-License-Identifier: Apache-2.0
"""The page on calling a VLM: its snippets run, in order, and print what stands below them."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# a snippet, and what it prints if that is shown right after it
SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def test_the_snippets_run_and_print_what_they_show(monkeypatch, tmp_path):
    pytest.importorskip("torchao")
    monkeypatch.chdir(ROOT)
    snippets = SNIPPET.findall((ROOT / "docs" / "calling.md").read_text())
    assert len(snippets) >= 8
    names: dict = {}
    for code, shown in snippets:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code.replace("runs/", f"{tmp_path}/"), "docs/calling.md", "exec"), names)
        if shown:
            assert [line.strip() for line in printed.getvalue().splitlines()] == shown.splitlines()
