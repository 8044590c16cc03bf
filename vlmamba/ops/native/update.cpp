// SPDX-License-Identifier: Apache-2.0
// One step of the selective scan and of the causal convolution for the CPU: what a language model runs for every
// generated token. Called by vlmamba/ops/selective_state_update/native.py and vlmamba/ops/causal_conv1d/native.py.

#include "common.h"

namespace {

// Mirrored field by field in the Python files. Operands are (B, 1, 1, X); `next` may be `state`.
struct StateUpdate {
    int64_t batch, channels, states, threads, softplus, real_type;
    Operand x, dt, B, C, z, out;
    const void *A, *D, *dt_bias, *state;
    void* next;
};

struct ConvUpdate {
    int64_t batch, channels, taps, threads, silu, real_type;
    Operand x, out;
    const void *weight, *bias, *state;
    void* next;
};

}  // namespace

#define WITH_DOUBLE
#define KERNELS "update.h"
#include "each_target.h"

namespace {

template <class Update>
using Kernel = void (*)(const Update&, int64_t, const Span&);

template <class Update>
void run(const Update& s, int64_t work, Kernel<Update> kernel) {
    Cut(s.batch, s.channels, GRAIN, s.threads, s.batch * s.channels * work)
        .run([&](int64_t, int64_t, Span batch, Span channels) {
            for (int64_t b = batch.begin; b < batch.end; ++b) kernel(s, b, channels);
        });
}

}  // namespace

extern "C" {

void vlmamba_state_update(const StateUpdate* s) {
    static constexpr Kernel<StateUpdate> all[] = TARGETS(state_update);
    run(*s, s->states + 2, s->real_type == DOUBLE ? in_double::state_update : all[chosen_target()]);
}

void vlmamba_conv_update(const ConvUpdate* s) {
    static constexpr Kernel<ConvUpdate> all[] = TARGETS(conv_update);
    run(*s, s->taps, s->real_type == DOUBLE ? in_double::conv_update : all[chosen_target()]);
}
}
