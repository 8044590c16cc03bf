# SPDX-License-Identifier: Apache-2.0
"""What every benchmark is told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How to measure.

    Args:
        threads: numbers of threads; each is measured by itself.
        rounds: of interleaved samples.
        check: leave out whoever does not agree with ours.
        memory: peak memory too.
        min_seconds: short calls are repeated until a sample is about this long.
    """

    threads: tuple[int, ...] = (1, 2)
    rounds: int = 7
    check: bool = True
    memory: bool = True
    min_seconds: float = 0.05
