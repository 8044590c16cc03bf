# SPDX-License-Identifier: Apache-2.0
"""The definition of a linear map with float or int8 weights.

y_o = sum_i x_i W_oi + b_o,    W_oi = scale_og w_ogj with i = 64 g + j where the weights are int8
"""

import torch


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor:
    """x `[..., inputs]` -> `[..., outputs]`; weight `[outputs, inputs]`, or int8 `[outputs, groups, 64]` with scale."""
    if scale is not None:
        weight = (weight * scale.to(x.dtype).unsqueeze(-1)).flatten(1)[:, : x.shape[-1]]
    y = (x.unsqueeze(-2) * weight).sum(-1)
    return y if bias is None else y + bias
