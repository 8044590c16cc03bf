# SPDX-License-Identifier: Apache-2.0
"""Our kernel: paths read and merged in place, on a backend by name; and the same kernel behind a gather and a merge."""

from dataclasses import replace
from functools import partial

import torch

from benchmarks.peers.scan_job import ScanJob, in_path_order
from benchmarks.shapes import ScanShape
from vlmamba import ops


def in_place(shape: ScanShape, backend: str) -> ScanJob:
    """Operands in rows, the paths given to the kernel."""
    return ScanJob(shape.inputs(), partial(ops.selective_scan, paths=shape.paths()), lambda _, value: value, backend)


def gathered(shape: ScanShape, backend: str) -> ScanJob:
    """x gathered along every path, a kernel that knows no paths, the directions added up with `index_add_`."""

    def scan(x, dt, A, B, C, D, dt_bias) -> torch.Tensor:
        return ops.selective_scan(x, dt, A, B, C, D, None, dt_bias, merge=False)

    return replace(in_path_order(shape, scan, channels_first=False), backend=backend)
