# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_scan():
    first, features = run("examples/own_scan.py").splitlines()
    assert first == str([0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6])
    assert features == "image features (16, 64)"


def test_ask():
    question = "Is there a castle in the picture?"
    answer = run("examples/ask.py", "examples/castle.png", question).strip()
    assert f"| `castle.png` | {question} | {answer} |" in (ROOT / "README.md").read_text()


def test_segment():
    before, after = (int(line.split("%")[0].split()[-1]) for line in run("examples/segment.py").splitlines())
    assert after > max(before, 60)
