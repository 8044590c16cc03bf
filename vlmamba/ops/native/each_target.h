// SPDX-License-Identifier: Apache-2.0
// Compiles the header named by KERNELS for every instruction set, and in double precision if WITH_DOUBLE is defined.

#define REAL float
namespace {
namespace baseline {
#define LANES 4
#include "vector.h"
#include KERNELS
#undef LANES
}  // namespace baseline

#ifdef MANY_TARGETS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#define LANES 8
#define HALF_BY_INSTRUCTION
#include "vector.h"
#include KERNELS
#undef LANES
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,f16c,prefer-vector-width=512")
#endif
namespace avx512 {
#define LANES 16
#define SCALE_BY_INSTRUCTION
#include "vector.h"
#include KERNELS
#undef SCALE_BY_INSTRUCTION
#undef HALF_BY_INSTRUCTION
#undef LANES
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#undef REAL

#ifdef WITH_DOUBLE
#define REAL double
#define IN_DOUBLE
namespace in_double {
#define LANES 4
#include "vector.h"
#include KERNELS
#undef LANES
}  // namespace in_double
#undef IN_DOUBLE
#undef REAL
#endif
}  // namespace
