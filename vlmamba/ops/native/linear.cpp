// SPDX-License-Identifier: Apache-2.0
// Linear maps of a few rows, called by vlmamba/ops/linear/native.py: what generating one token consists of.

#include "linear_call.h"

#define KERNELS "linear.h"
#include "each_target.h"

namespace {

using Multiply = void (*)(const Linear&, const float*, int64_t, const Span&, float*, int64_t);
const Multiply MULTIPLY[] = TARGETS(multiply);

bool has_vnni() {
#ifdef MANY_TARGETS
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

bool vnni = has_vnni();

}  // namespace

bool uses_vnni() { return vnni; }

extern "C" {

// Off, or on if this CPU has them.
int vlmamba_choose_vnni(int on) { return vnni = on && has_vnni(); }

// x: (rows, inputs), y: (rows, outputs), both contiguous.
void vlmamba_linear(const Linear* l, const float* x, int64_t rows, float* y, int64_t threads) {
    const int64_t width = padded(l->inputs);
    Buffer<float> packed(rows * width);
    packed.zero();
    for (int64_t r = 0; r < rows; ++r)
        std::memcpy(packed.data + r * width, x + r * l->inputs, l->inputs * sizeof(float));
    threads = smaller(threads, 1 + l->inputs * l->outputs / (1 << 16));
    const Multiply piece = MULTIPLY[chosen_target()];
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < threads; ++i)
        piece(*l, packed.data, rows, part(l->outputs, 1, i, threads), y, l->outputs);
}
}
