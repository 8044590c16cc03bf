// SPDX-License-Identifier: Apache-2.0
// Mamba-2's scan for the CPU, forward, and its one-step form; the formula stands in vlmamba/ops/ssd/reference.py. Plain C
// interface, called by vlmamba/ops/ssd/native.py.
//
// With one decay a head a step costs three multiply-adds a state, about what the matrix products of a chunk cost: the
// states stay in registers over the steps of a chunk, sixteen at a time.

#include "common.h"

namespace {

// Mirrored field by field in vlmamba/ops/ssd/native.py. Operands are (B, 1, L, heads * size | groups * states | heads).
struct Ssd {
    int64_t batch, heads, size, groups, states, interval, threads, softplus, real_type;
    double low, high;
    Order order;
    Operand x, dt, B, C, z, out;
    const void *A, *D, *dt_bias, *state;
    void *y, *last, *kept;  // y, kept: null when no gradient is needed; kept: the state every `interval` steps

    int64_t channels() const { return heads * size; }
    int64_t chunks() const { return (order.length + interval - 1) / interval; }
};

}  // namespace

#define WITH_DOUBLE
#define KERNELS "ssd.h"
#include "each_target.h"

namespace {

using Kernel = void (*)(const Ssd&, const Span&, const Span&);

void run(const Ssd& s, Kernel kernel) {
    const int64_t work = s.batch * s.order.length * s.channels() * (s.states + 2);
    Cut(s.batch, s.heads, 1, s.threads, work).run([&](int64_t, int64_t, Span batch, Span heads) {
        kernel(s, batch, heads);
    });
}

}  // namespace

extern "C" {

void vlmamba_ssd_forward(const Ssd* s) {
    static constexpr Kernel all[] = TARGETS(forward);
    run(*s, s->real_type == DOUBLE ? in_double::forward : all[chosen_target()]);
}

void vlmamba_ssd_update(const Ssd* s) {
    static constexpr Kernel all[] = TARGETS(update);
    run(*s, s->real_type == DOUBLE ? in_double::update : all[chosen_target()]);
}
}
