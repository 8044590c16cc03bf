// SPDX-License-Identifier: Apache-2.0
// A linear map as the kernels see it: linear.cpp and mamba_step.cpp.

#pragma once

#include "common.h"

constexpr int64_t GROUP = 64;  // neighbouring int8 weights that share a scale: `GROUP` of ops/linear/quantized.py

// Numbers of some type, may be null. Mirrored in ops/native/step.py.
struct Values {
    const void* data;
    int64_t type;
};

// Mirrored field by field in ops/native/step.py
struct Linear {
    Values weight;       // (outputs, inputs), or int8 (outputs, groups, GROUP) where there is a scale
    const float* scale;  // (outputs, groups)
    Values bias;
    int64_t inputs, outputs;
};

// Whether the avx512 kernels multiply int8 weights by VNNI instructions.
bool uses_vnni();

// To whole groups.
inline int64_t padded(int64_t size) { return (size + GROUP - 1) / GROUP * GROUP; }
