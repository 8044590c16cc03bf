// SPDX-License-Identifier: Apache-2.0
// The selective scan for the CPU, forward and backward; the formula stands in
// vlmamba/ops/selective_scan/reference.py. Plain C interface, called by vlmamba/ops/selective_scan/native.py.
//
// Forward keeps the state before every tile of TILE steps; backward recomputes the states inside a tile.
// Work is cut by batch, then by channels. A task runs all directions of its channels, so that it alone writes their
// rows: directions add up in place, and every sum is taken in a fixed order.

#include "common.h"

namespace {

// Mirrored field by field in vlmamba/ops/selective_scan/native.py. Operands that are not there
// have no data.
struct Scan {
    int64_t batch, paths, channels, states, threads, softplus, merge, real_type;
    Order order;
    Operand x, dt, B, C, z, out, dout, dz;
    const void *A, *D, *dt_bias, *state;
    void *y, *last, *kept;  // y, kept: null when no gradient is needed
    const void* dlast;
    void *dx, *ddt, *dA, *dB, *dC, *dD, *dbias, *dstate;

    int64_t planes() const { return merge ? 1 : paths; }
    int64_t plane(int64_t k) const { return merge ? 0 : k; }
    bool shared(const Operand& m) const { return paths > 1 && m.strides[1] == 0; }
    bool first(const Operand& m, int64_t k) const { return k == 0 || !shared(m); }
};

struct Task {
    Span batch, channels;
    void *dA = nullptr, *dD = nullptr, *dbias = nullptr, *dB = nullptr, *dC = nullptr;
};

int64_t padded_states(int64_t states) { return states == 1 ? 1 : (states + 3) / 4 * 4; }

}  // namespace

#define WITH_DOUBLE
#define KERNELS "selective_scan.h"
#include "each_target.h"

namespace {

using Kernel = void (*)(const Scan&, const Task&);

Kernel forward_kernel(const Scan& s) {
    static constexpr Kernel all[] = TARGETS(forward);
    return s.real_type == DOUBLE ? in_double::forward : all[chosen_target()];
}

Kernel backward_kernel(const Scan& s) {
    static constexpr Kernel all[] = TARGETS(backward);
    return s.real_type == DOUBLE ? in_double::backward : all[chosen_target()];
}

Cut cut(const Scan& s) {
    return {s.batch, s.channels, GRAIN, s.threads, s.batch * s.paths * s.order.steps * s.channels * (s.states + 2)};
}

template <class T>
void run_backward(const Scan& s) {
    const Cut pieces = cut(s);
    const int64_t vector = s.paths * s.channels, matrix = vector * s.states;
    const int64_t plane = s.batch * s.order.length * s.states;
    const int64_t dB_size = plane * (s.shared(s.B) ? 1 : s.paths), dC_size = plane * (s.shared(s.C) ? 1 : s.paths);
    Buffer<T> dA(pieces.groups * matrix), dD(pieces.groups * vector), dbias(dD.size);
    Buffer<T> dB(pieces.splits * dB_size), dC(pieces.splits * dC_size);
    dB.zero();
    dC.zero();
    const Kernel kernel = backward_kernel(s);
    pieces.run([&](int64_t group, int64_t split, Span batch, Span channels) {
        kernel(s, {batch, channels, dA.data + group * matrix, dD.data + group * vector, dbias.data + group * vector,
                   dB.data + split * dB_size, dC.data + split * dC_size});
    });
    add_up(s.dA, dA, matrix);
    add_up(s.dD, dD, vector);
    add_up(s.dbias, dbias, vector);
    add_up(s.dB, dB, dB_size);
    add_up(s.dC, dC, dC_size);
}

}  // namespace

extern "C" {

void vlmamba_scan_forward(const Scan* s) {
    const Kernel kernel = forward_kernel(*s);
    cut(*s).run([&](int64_t, int64_t, Span batch, Span channels) { kernel(*s, {batch, channels}); });
}

void vlmamba_scan_backward(const Scan* s) {
    if (s->real_type == DOUBLE)
        run_backward<double>(*s);
    else
        run_backward<float>(*s);
}
}
