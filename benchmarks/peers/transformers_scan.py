# SPDX-License-Identifier: Apache-2.0
"""transformers' own scan: the loop that its Mamba models run, and its associative scan, which needs torch.compile.

The function knows one direction, so several are several calls. D and the biases are given to it; the gate is applied
after the directions are merged, which is cheaper for it than once in each.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
from transformers.models.mamba import modeling_mamba


def _scan(x, dt, A, B, C, D, dt_bias, each: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Channels first: x, dt `[B, K, D, L]`, B, C `[B, K, N, L]` -> `[B, K, D, L]`."""
    y = [
        each(x[:, k], dt[:, k], A[k], B[:, k], C[:, k], D[k], delta_bias=dt_bias[k], delta_softplus=True)
        for k in range(x.shape[1])
    ]
    return torch.stack(y, dim=1)


sequential = partial(_scan, each=modeling_mamba.mamba_selective_scan)


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(partial(modeling_mamba.mamba_selective_scan, use_associative_scan=True), dynamic=False)


def associative(x, dt, A, B, C, D, dt_bias) -> torch.Tensor:
    """As `sequential`; compiles for every new shape."""
    return _scan(x, dt, A, B, C, D, dt_bias, each=_compiled())
