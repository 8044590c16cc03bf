# SPDX-License-Identifier: Apache-2.0
"""Functions of one number that the kernels share, in base 2, the base of GPU hardware.

`FAST` takes the instructions of NVIDIA hardware, at most 2 ulp off over the range that the kernels use. Triton's own
functions, for AMD and for the interpreter, are as exact but longer there: they mend subnormal numbers.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def exp2(x, FAST: tl.constexpr):
    if FAST:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    if FAST:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / x


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    return reciprocal(1.0 + exp2(x * -LOG2E, FAST), FAST)


@triton.jit
def softplus(x, FAST: tl.constexpr):
    """max(x, 0) + log1p(exp(-|x|)); log1p(t) = t P(t) on 0..1, relative error 3e-7, so that tiny steps stay exact."""
    t = exp2(tl.abs(x) * -LOG2E, FAST)
    p = 0.0434939 - 0.00837115 * t
    p = -0.10685003 + p * t
    p = 0.17687477 + p * t
    p = -0.24474774 + p * t
    p = 0.33271928 + p * t
    p = -0.49997175 + p * t
    p = 0.99999978 + p * t
    return tl.maximum(x, 0.0) + t * p
