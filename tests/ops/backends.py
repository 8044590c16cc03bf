# SPDX-License-Identifier: Apache-2.0
"""The backends that can run here: without a compiler `native` is missing, without a GPU `triton` is."""

import torch

from vlmamba.ops import BACKENDS, native, triton

AVAILABLE = [
    name for name in BACKENDS if {"native": native.available, "triton": triton.available}.get(name, lambda: True)()
]
DOUBLE = [name for name in AVAILABLE if name != "triton"]
DEVICE = {name: "cuda" if name == "triton" and torch.cuda.is_available() else "cpu" for name in AVAILABLE}
AGAINST_REFERENCE = [
    (name, dtype)
    for name in AVAILABLE
    for dtype in (torch.float32, torch.float64)
    if name != "reference" and (name in DOUBLE or dtype == torch.float32)
]
