# SPDX-License-Identifier: Apache-2.0
"""One step of the selective scan on a GPU kernel, in float32; no gradients."""

import torch
import triton
import triton.language as tl

from vlmamba.ops.triton import launcher
from vlmamba.ops.triton.elementwise import LOG2E, exp2, sigmoid, softplus
from vlmamba.ops.triton.launcher import blocks, given, power_of_two

CHANNELS = 32  # of one program


@triton.jit
def state_update_kernel(
    state, x, dt, A, B, C, D, z, bias, y, new, channels, N: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """BD channels of one sequence, BN states at a time; x, dt, z, y (B, D), B, C (B, N), state, new (B, D, N)."""
    cuts = tl.cdiv(channels, BD)
    b = (tl.program_id(0) // cuts).to(tl.int64)
    d = (tl.program_id(0) % cuts) * BD + tl.arange(0, BD)
    in_d = d < channels
    row = b * channels + d
    x_t = tl.load(x + row, mask=in_d, other=0.0).to(tl.float32)
    delta = tl.load(dt + row, mask=in_d, other=0.0).to(tl.float32)
    if HAS_BIAS:
        delta += tl.load(bias + d, mask=in_d, other=0.0)
    if SOFTPLUS:
        delta = softplus(delta, FAST)
    y_t = tl.zeros([BD], tl.float32)
    for tile in tl.static_range((N + BN - 1) // BN):
        n = tile * BN + tl.arange(0, BN)
        in_n = n < N
        in_dn = in_d[:, None] & in_n[None, :]
        B_t = tl.load(B + b * N + n, mask=in_n, other=0.0).to(tl.float32)
        C_t = tl.load(C + b * N + n, mask=in_n, other=0.0).to(tl.float32)
        rate = tl.load(A + d[:, None] * N + n[None, :], mask=in_dn, other=0.0) * LOG2E
        here = row[:, None] * N + n[None, :]
        h = tl.load(state + here, mask=in_dn, other=0.0)
        h = exp2(delta[:, None] * rate, FAST) * h + (delta * x_t)[:, None] * B_t[None, :]
        tl.store(new + here, h, mask=in_dn)
        y_t += tl.sum(h * C_t[None, :], axis=1)
    if HAS_D:
        y_t += tl.load(D + d, mask=in_d, other=0.0) * x_t
    if HAS_Z:
        z_t = tl.load(z + row, mask=in_d, other=0.0).to(tl.float32)
        y_t *= z_t * sigmoid(z_t, FAST)
    tl.store(y + row, y_t, mask=in_d)


def selective_state_update_triton(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_softplus: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Same arguments and results as `selective_state_update_reference`."""
    operands = [None if v is None else v.contiguous() for v in (state, x, dt, A, B, C, D, z, dt_bias)]
    (batch, channels), size = x.shape, A.shape[1]
    y, new = x.new_empty(x.shape), torch.empty_like(operands[0])
    launcher.launch(
        state_update_kernel, batch * blocks(channels, CHANNELS), *given((*operands, y, new), x), channels,
        N=size, BN=min(16, power_of_two(size)), BD=CHANNELS, HAS_D=D is not None, HAS_Z=z is not None,
        HAS_BIAS=dt_bias is not None, SOFTPLUS=dt_softplus, FAST=launcher.fast(), num_warps=1,
    )  # fmt: skip
    return y, new
