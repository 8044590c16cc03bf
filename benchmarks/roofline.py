# SPDX-License-Identifier: Apache-2.0
"""How far the forward kernel is from what the CPU's multiply-add units allow.

Per 16 channels, one state costs about 11.3 slots of the 16-lane multiply-add pipe: exp is a range reduction, five
multiply-adds of its polynomial and a scaling (7.3 slots), then dt A, dt x B, decay h + input and C h. Softplus and
SiLU add about 1.1 slots a channel (spread over 16 lanes). So for N states

    floor in ns per element = (11.3 N / 16 + 1.1) x slot time,

where the slot time is measured here: a compiled loop of independent 16-lane multiply-adds. (On Zen 4 a slot is one
cycle; where vectors are narrower, the compiler splits them and the slot is longer.)
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SLOTS_PER_STATE = 11.3 / 16
SLOTS_PER_ELEMENT = 1.1

SOURCE = """
typedef float lanes __attribute__((vector_size(64)));
float multiply_add(long rounds) {
    lanes a[12];
    const lanes factor = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f,
                          0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f};
    for (int i = 0; i < 12; ++i) a[i] = factor + (float)i;
    for (long r = 0; r < rounds; ++r)
        for (int i = 0; i < 12; ++i) a[i] = a[i] * factor + factor;
    lanes sum = a[0];
    for (int i = 1; i < 12; ++i) sum += a[i];
    return sum[0];
}
"""
ROUNDS = 2_000_000


def slot_seconds() -> float | None:
    """Seconds of one independent 16-lane multiply-add on one core, best of five; None without a C compiler."""
    compiler = os.environ.get("CC") or next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "slot.c"), Path(folder, "slot.so")
        source.write_text(SOURCE)
        flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
        if subprocess.run([compiler, *flags, "-o", library, source], capture_output=True).returncode:
            return None
        loop = ctypes.CDLL(str(library)).multiply_add
        loop.argtypes, loop.restype = [ctypes.c_long], ctypes.c_float
        seconds = []
        for _ in range(5):
            start = time.process_time()
            loop(ROUNDS)
            seconds.append((time.process_time() - start) / (12 * ROUNDS))
    return min(seconds)


def floor_nanoseconds(states: int, slot: float) -> float:
    """The floor of the module's formula, in ns per element and core."""
    return (SLOTS_PER_STATE * states + SLOTS_PER_ELEMENT) * slot * 1e9
