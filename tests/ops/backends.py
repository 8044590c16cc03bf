# SPDX-License-Identifier: Apache-2.0
"""The backends that can run here: without a compiler, `native` is missing."""

import torch

from vlmamba.ops import BACKENDS, native

AVAILABLE = [name for name in BACKENDS if name != "native" or native.available()]
# native serves float32 only; in float64 it would be the torch backend again
DOUBLE = [name for name in AVAILABLE if name != "native"]
AGAINST_REFERENCE = [
    (name, dtype)
    for name in AVAILABLE
    for dtype in (torch.float32, torch.float64)
    if name != "reference" and (name in DOUBLE or dtype == torch.float32)
]
