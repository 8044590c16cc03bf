// SPDX-License-Identifier: Apache-2.0
// The selective scan on vectors: what forward and backward share. Included by selective_scan.cpp.
//
// A vector holds LANES neighbouring channels. The states of these channels stay in registers over a tile of
// TILE steps; what is done once per step and channel (softplus, gate, gradients of x and dt) is a loop of its own.

#include "rows.h"

// Rows of B or C (L, N) -> (count, padded states); padded steps and states are 0.
template <class T>
static void gather_rows(REAL* out, const Operand& m, int64_t states, int64_t padded, const Steps& steps, int64_t b,
                        int64_t k) {
    const T* base = m.at<const T>(b, k);
    for (int t = 0; t < steps.count; ++t, out += padded) {
        std::memset(out, 0, padded * sizeof(REAL));
        if (steps.row[t] < 0) continue;
        const T* row = base + steps.row[t] * m.strides[2];
        for (int64_t n = 0; n < states; n += LANES) {
            const int lanes = int(smaller(states - n, LANES));
            store(out + n, load(row + n, lanes), lanes);
        }
    }
}

static void gather(REAL* out, const Operand& m, int64_t states, int64_t padded, const Steps& steps, int64_t b,
                   int64_t k) {
#ifdef IN_DOUBLE
    gather_rows<double>(out, m, states, padded, steps, b, k);
#else
    if (m.type == FLOAT) gather_rows<float>(out, m, states, padded, steps, b, k);
    if (m.type == BFLOAT) gather_rows<Bfloat>(out, m, states, padded, steps, b, k);
    if (m.type == HALF) gather_rows<Half>(out, m, states, padded, steps, b, k);
#endif
}

// (D, N) of a task's channels <-> vectors of channels (blocks, padded states, LANES)
static void pack(REAL* out, const void* matrix, const Scan& s, const Span& channels, REAL scale = 1) {
    const REAL* in = real(matrix);
    const int64_t padded = padded_states(s.states);
    for (int64_t c = channels.begin; c < channels.end; c += LANES, out += padded * LANES)
        for (int64_t n = 0; n < padded; ++n)
            for (int64_t i = 0; i < LANES; ++i) {
                const bool there = in && c + i < channels.end && n < s.states;
                out[n * LANES + i] = there ? in[(c + i) * s.states + n] * scale : 0;
            }
}

static void unpack(REAL* out, const REAL* in, const Scan& s, const Span& channels) {
    const int64_t padded = padded_states(s.states);
    for (int64_t c = channels.begin; c < channels.end; c += LANES, in += padded * LANES)
        for (int64_t i = 0; i < LANES && c + i < channels.end; ++i)
            for (int64_t n = 0; n < s.states; ++n) out[(c + i) * s.states + n] = in[n * LANES + i];
}

// One vector of channels over one tile.
struct Tile {
    V x[TILE], delta[TILE], input[TILE], y[TILE];       // input: delta * x; y: in backward its gradient
    V slope[TILE], dinput[TILE], dexponent[TILE];  // of softplus; gradients, dexponent's in units of ln 2

    template <bool BACKWARD>
    INLINE_METHOD void prepare(const Scan& s, const Steps& steps, int64_t b, int64_t k, int64_t c, int lanes) {
        read(x, s.x, steps, b, k, c, lanes);
        read(delta, s.dt, steps, b, k, c, lanes);
        const V bias = s.dt_bias ? load(real(s.dt_bias) + k * s.channels + c, lanes) : V{};
        const V skip = s.D ? load(real(s.D) + k * s.channels + c, lanes) : V{};
        for (int t = 0; t < steps.count; ++t) {
            V raw = delta[t] + bias;
            if (s.softplus) {
                V small = exp_negative(minus_magnitude(raw));
                if (BACKWARD) slope[t] = (raw < 0 ? small : V{} + 1) * reciprocal(1 + small);
                raw = positive_part(raw) + log1p(small);
            }
            delta[t] = raw;
            input[t] = raw * x[t];
            if (BACKWARD)
                dinput[t] = dexponent[t] = V{};
            else
                y[t] = skip * x[t];
        }
    }
};

// All states of one vector of channels, and B, C and their gradients for the tile: (count, states).
struct States {
    const V *A, *start;  // start: before the tile
    V* end;              // after the tile; in backward the gradient
    const REAL *B, *C;
    int64_t count;
    V *dA = nullptr, *dB = nullptr, *dC = nullptr;
};

// One task: some batch elements, some channels, all directions.
struct Worker {
    const Scan& s;
    const Task& task;
    const int64_t padded = padded_states(s.states), matrix = s.channels * s.states;
    const int64_t blocks = (task.channels.size() + LANES - 1) / LANES, packed = blocks * padded * LANES;
    Buffer<REAL> A{s.paths * packed}, state{packed}, B{TILE * padded}, C{TILE * padded};
    Tile tile;

    Worker(const Scan& scan, const Task& job) : s(scan), task(job) {
        for (int64_t k = 0; k < s.paths; ++k)
            pack(A.data + k * packed, real(s.A) + k * matrix, s, task.channels, TO_BASE_2);
    }

    int64_t channel(int64_t block) const { return task.channels.begin + block * LANES; }
    int lanes(int64_t block) const { return int(smaller(task.channels.end - channel(block), LANES)); }

    // The state before a tile, as forward keeps it: (states, D).
    REAL* kept(int64_t b, int64_t k, int64_t i) const {
        return real(s.kept) + ((b * s.paths + k) * s.order.tiles() + i) * matrix;
    }

    Steps enter(int64_t b, int64_t k, int64_t i) {
        Steps steps(s.order, b, k, i);
        gather(B.data, s.B, s.states, padded, steps, b, k);
        gather(C.data, s.C, s.states, padded, steps, b, k);
        return steps;
    }
};

#include "selective_scan_forward.h"
#include "selective_scan_backward.h"
