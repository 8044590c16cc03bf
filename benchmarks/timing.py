# SPDX-License-Identifier: Apache-2.0
"""Interleaved measurement: A B A B in one process, so that a change of the machine's mood meets everybody.

At one thread the process's CPU time is the figure to trust: it does not count what other programs do in
between. At more threads waiting threads spin and count, so there the wall clock is it.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch

from benchmarks.options import Options

SLOW_SECONDS = 4.0
SLOW_ROUNDS = 3


@dataclass
class Samples:
    """Seconds per call of one candidate, one number a round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def of(self, threads: int) -> list[float]:
        """The clock to trust at so many threads."""
        return self.cpu if threads == 1 else self.wall


def interleave(calls: dict[str, Callable[[], object]], options: Options, warm_up: bool = True) -> dict[str, Samples]:
    """Time every candidate once a round, in turn.

    Args:
        calls: name -> function without arguments.
        options: its rounds come after the one that warms up.
        warm_up: False spares that round where every call is long and the same code ran before.

    Returns:
        name -> samples. A call that takes over 4 s is timed in the first three rounds only, while the others go on.
    """
    repeats = dict.fromkeys(calls, 1)
    for name, call in calls.items() if warm_up else ():
        first = Samples()
        _time(call, 1, first)
        repeats[name] = max(1, round(options.min_seconds / max(first.wall[0], 1e-7)))
    samples = {name: Samples() for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            own = samples[name]
            if len(own.wall) < SLOW_ROUNDS or min(own.wall) <= SLOW_SECONDS:
                _time(call, repeats[name], own)
    return samples


def _time(call: Callable[[], object], repeats: int, samples: Samples) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    samples.wall.append((time.perf_counter() - wall) / repeats)
    samples.cpu.append((time.process_time() - cpu) / repeats)


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """How many times longer `slower` takes: the spread of the ratios round by round."""
    return spread([s / f for s, f in zip(slower, faster, strict=False)])


def ratios(samples: dict[str, list[float]], subjects: Iterable[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Subject -> peer -> how many times the subject's time the peer takes; subjects without samples are left out."""
    return {
        subject: {name: ratio(values, samples[subject]) for name, values in samples.items() if name != subject}
        for subject in subjects
        if subject in samples
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch, and with it our kernels, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
