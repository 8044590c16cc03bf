# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one call, measured in a process of its own (Linux).

    python -m benchmarks.memory benchmarks.scan:memory_job '{"provider": "native", ...}'

The target gives two functions: one that warms up on something small, so that libraries are loaded, and the one to
measure. The kernel's high-water mark is reset between them; extra memory is the mark after less the resident
set before, so inputs do not count and results do.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]


def peak(target: str, **arguments: object) -> int:
    """Extra bytes at the peak of a call, measured at one thread.

    Args:
        target: `module:function` that returns (warm up, call).
        arguments: what that function takes; JSON's types.

    Raises:
        RuntimeError: the process failed; the message ends with its last line.
    """
    command = [sys.executable, "-m", "benchmarks.memory", target, json.dumps(arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"memory of {target}: {last}")
    return int(done.stdout.splitlines()[-1])


def reason() -> str:
    """Why peaks cannot be measured here; empty when they can."""
    return "" if Path("/proc/self/clear_refs").exists() else "peak memory needs Linux's /proc"


def keep_freed_memory() -> None:
    """Let glibc keep every freed block for the next call, in this process, from now on.

    By default it gives blocks of 32 MB and more back at once, and each call of a long sequence pays for getting them
    again, page by page.
    """
    mmap_max, trim_threshold = -4, -1
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def _status(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _measure(warm_up: Callable[[], object], call: Callable[[], object]) -> int:
    warm_up()
    # what was freed must not serve the call unseen
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = call()
    after = _status("VmHWM")
    del result
    return after - before


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    print(_measure(*getattr(import_module(module), function)(**json.loads(sys.argv[2]))))
