// SPDX-License-Identifier: Apache-2.0
// Which instruction set the kernels use; the fastest that this CPU has, unless one is chosen by name.

#include "common.h"

namespace {

const char* const NAMES[] = {"baseline", "avx2", "avx512"};

bool has(int target) {
#ifdef MANY_TARGETS
    __builtin_cpu_init();
    if (target == 2)
        return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && has(1);
    // every processor with avx2 and fma converts half precision too
    if (target == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return target == 0;
}

int chosen = has(2) ? 2 : has(1) ? 1 : 0;

}  // namespace

int chosen_target() { return chosen; }

extern "C" {

// SOURCES_VERSION of __init__.py
int vlmamba_version() { return 5; }

const char* vlmamba_target() { return NAMES[chosen]; }

// 0 when this CPU has no instruction set of that name.
int vlmamba_choose_target(const char* name) {
    for (int target = 0; target < 3; ++target)
        if (!std::strcmp(NAMES[target], name) && has(target)) {
            chosen = target;
            return 1;
        }
    return 0;
}
}
