# SPDX-License-Identifier: Apache-2.0
"""The kernel: functions on tensors, one contract, several backends.

`vlmamba.ops.compat` offers the same functions under the names and layouts of `mamba_ssm` and `causal_conv1d`.
"""

from vlmamba.ops.backend import BACKENDS, backend_for, use_backend
from vlmamba.ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from vlmamba.ops.selective_scan import selective_scan
from vlmamba.ops.selective_state_update import selective_state_update
from vlmamba.ops.ssd import ssd_scan, ssd_update

__all__ = [
    "BACKENDS",
    "backend_for",
    "causal_conv1d",
    "causal_conv1d_update",
    "selective_scan",
    "selective_state_update",
    "ssd_scan",
    "ssd_update",
    "use_backend",
]
