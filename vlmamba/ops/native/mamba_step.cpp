// SPDX-License-Identifier: Apache-2.0
// One token through Mamba-1 layers in one call, called by vlmamba/ops/native/step.py.

#include "mamba_layer.h"

#define KERNELS "mamba_step.h"
#include "each_target.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

using Layer = void (*)(const MambaLayer&, MambaStep&, int64_t, int64_t);
const Layer LAYER[] = TARGETS(mamba_step);

void run(const MambaLayer* layers, int64_t count, MambaStep& step) {
    int64_t thread = 0, threads = 1;
#ifdef _OPENMP
    thread = omp_get_thread_num();
    threads = omp_get_num_threads();
#endif
    for (int64_t i = 0; i < count; ++i) LAYER[chosen_target()](layers[i], step, thread, threads);
}

}  // namespace

extern "C" {

// x, y: (batch, hidden), contiguous; may be the same. All layers have the sizes of the first.
void vlmamba_mamba_step(const MambaLayer* layers, int64_t count, int64_t batch, const float* x, float* y,
                        int64_t threads) {
    MambaStep step(layers[0], batch);
    const int64_t hidden = layers[0].hidden, width = padded(hidden);
    for (int64_t b = 0; b < batch; ++b)
        std::memcpy(step.stream.data + b * width, x + b * hidden, hidden * sizeof(float));
#pragma omp parallel num_threads(threads) if (threads > 1)
    run(layers, count, step);
    for (int64_t b = 0; b < batch; ++b)
        std::memcpy(y + b * hidden, step.stream.data + b * width, hidden * sizeof(float));
}
}
