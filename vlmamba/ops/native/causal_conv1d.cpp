// SPDX-License-Identifier: Apache-2.0
// The causal depthwise convolution for the CPU, forward and backward; the formula stands in
// vlmamba/ops/causal_conv1d/reference.py. Plain C interface, called by vlmamba/ops/causal_conv1d/native.py.

#include "common.h"

namespace {

// Mirrored field by field in vlmamba/ops/causal_conv1d/native.py.
struct Conv {
    int64_t batch, paths, channels, taps, threads, silu, real_type;
    Order order;
    Operand x, out, dy;  // results go to `out` where every row is visited once, else they add up in y
    const void *weight, *bias, *state;
    void *y, *last;
    const void* dlast;
    void *dx, *dweight, *dbias, *dstate;

    bool shared() const { return paths > 1 && x.strides[1] == 0; }
};

struct Task {
    Span batch, channels;
    void *dweight = nullptr, *dbias = nullptr;
};

}  // namespace

#define WITH_DOUBLE
#define KERNELS "causal_conv1d.h"
#include "each_target.h"

namespace {

using Kernel = void (*)(const Conv&, const Task&);

Kernel forward_kernel(const Conv& s) {
    static constexpr Kernel all[] = TARGETS(forward);
    return s.real_type == DOUBLE ? in_double::forward : all[chosen_target()];
}

Kernel backward_kernel(const Conv& s) {
    static constexpr Kernel all[] = TARGETS(backward);
    return s.real_type == DOUBLE ? in_double::backward : all[chosen_target()];
}

Cut cut(const Conv& s) {
    return {s.batch, s.channels, GRAIN, s.threads, s.batch * s.paths * s.order.steps * s.channels};
}

template <class T>
void run_backward(const Conv& s) {
    const Cut pieces = cut(s);
    const int64_t vector = s.paths * s.channels, matrix = vector * s.taps;
    Buffer<T> dweight(pieces.groups * matrix), dbias(pieces.groups * vector);
    const Kernel kernel = backward_kernel(s);
    pieces.run([&](int64_t group, int64_t, Span batch, Span channels) {
        kernel(s, {batch, channels, dweight.data + group * matrix, dbias.data + group * vector});
    });
    add_up(s.dweight, dweight, matrix);
    add_up(s.dbias, dbias, vector);
}

}  // namespace

extern "C" {

void vlmamba_conv_forward(const Conv* s) {
    const Kernel kernel = forward_kernel(*s);
    cut(*s).run([&](int64_t, int64_t, Span batch, Span channels) { kernel(*s, {batch, channels}); });
}

void vlmamba_conv_backward(const Conv* s) {
    if (s->real_type == DOUBLE)
        run_backward<double>(*s);
    else
        run_backward<float>(*s);
}
}
