// SPDX-License-Identifier: Apache-2.0
// The causal convolution on vectors of LANES channels. Included by causal_conv1d.cpp.

#include "rows.h"

// (D, X) of a task's channels <-> X vectors for each block of channels
static void pack(REAL* out, const REAL* in, int64_t width, const Span& channels) {
    for (int64_t c = channels.begin; c < channels.end; c += LANES, out += width * LANES)
        for (int64_t w = 0; w < width; ++w)
            for (int64_t i = 0; i < LANES; ++i)
                out[w * LANES + i] = in && c + i < channels.end ? in[(c + i) * width + w] : 0;
}

static void unpack(REAL* out, const REAL* in, int64_t width, const Span& channels) {
    for (int64_t c = channels.begin; c < channels.end; c += LANES, in += width * LANES)
        for (int64_t i = 0; i < LANES && c + i < channels.end; ++i)
            for (int64_t w = 0; w < width; ++w) out[(c + i) * width + w] = in[w * LANES + i];
}

// One task: some batch elements, some channels, all directions. Position p of a window is step p - before of its tile.
struct Worker {
    const Conv& s;
    const Task& task;
    const int64_t before = s.taps - 1, blocks = (task.channels.size() + LANES - 1) / LANES;
    Buffer<REAL> weight{s.paths * blocks * s.taps * LANES}, window{(TILE + before) * LANES}, y{TILE * LANES};
    Buffer<REAL> state{blocks * before * LANES};

    Worker(const Conv& conv, const Task& job) : s(conv), task(job) {
        for (int64_t k = 0; k < s.paths; ++k)
            pack(weight.data + k * blocks * s.taps * LANES, real(s.weight) + k * s.channels * s.taps, s.taps,
                 task.channels);
    }

    int64_t channel(int64_t block) const { return task.channels.begin + block * LANES; }
    int lanes(int64_t block) const { return int(smaller(task.channels.end - channel(block), LANES)); }
    int64_t state_at(int64_t b, int64_t k) const { return (b * s.paths + k) * s.channels * before; }
    V* vectors(const Buffer<REAL>& buffer) const { return (V*)buffer.data; }
    const V* taps(int64_t k, int64_t block) const { return vectors(weight) + (k * blocks + block) * s.taps; }

    // Whether a tap of a step reads another packed sequence than the step's own; the state continues the first.
    bool foreign(const Steps& steps, int64_t b, int64_t k, int64_t tile, int t, int64_t tap) const {
        if (!s.order.sequence) return false;
        const int64_t source = larger(tile * TILE + t - before + tap, 0);
        return s.order.number(b, s.order.row(k, source)) != s.order.number(b, steps.row[t]);
    }

    // Sums over the taps, before the activation.
    INLINE_METHOD void convolve(const Steps& steps, int64_t b, int64_t k, int64_t tile, int64_t block) {
        const V bias = s.bias ? load(real(s.bias) + k * s.channels + channel(block), lanes(block)) : V{};
        const V *w = taps(k, block), *x = vectors(window);
        V* out = vectors(y);
        if (s.taps == 4 && !s.order.sequence) {
            for (int t = 0; t < steps.count; ++t)
                out[t] = bias + w[0] * x[t] + w[1] * x[t + 1] + w[2] * x[t + 2] + w[3] * x[t + 3];
            return;
        }
        for (int t = 0; t < steps.count; ++t) {
            out[t] = bias;
            for (int64_t tap = 0; tap < s.taps; ++tap)
                if (!foreign(steps, b, k, tile, t, tap)) out[t] += w[tap] * x[t + tap];
        }
    }
};

struct Forward : Worker {
    using Worker::Worker;

    void run(int64_t b, int64_t k) {
        const Sums to{real(s.y) + (b * s.paths + k) * s.order.length * s.channels, s.channels};
        const bool store_only = s.order.once;
        if (!store_only)
            Sums{to.data + task.channels.begin, to.stride}.clear(s.order.length, task.channels.size());
        pack(state.data, s.state ? real(s.state) + state_at(b, k) : nullptr, before, task.channels);
        for (int64_t i = 0; i < s.order.tiles(); ++i) {
            const Steps steps(s.order, b, k, i);
            for (int64_t block = 0; block < blocks; ++block) {
                V *past = vectors(state) + block * before, *x = vectors(window);
                for (int64_t p = 0; p < before; ++p) x[p] = past[p];
                read(x + before, s.x, steps, b, k, channel(block), lanes(block));
                convolve(steps, b, k, i, block);
                for (int64_t p = 0; p < before; ++p) past[p] = x[steps.count + p];
                V* out = vectors(y);
                if (s.silu)
                    for (int t = 0; t < steps.count; ++t) out[t] = silu(out[t]);
                if (s.out.data)
                    write(s.out, out, steps, b, k, channel(block), lanes(block));
                else
                    to.put(out, steps, channel(block), lanes(block), store_only);
            }
        }
        unpack(real(s.last) + state_at(b, k), state.data, before, task.channels);
    }
};

static void forward(const Conv& s, const Task& task) {
    Forward worker(s, task);
    for (int64_t b = task.batch.begin; b < task.batch.end; ++b)
        for (int64_t k = 0; k < s.paths; ++k) worker.run(b, k);
}

struct Backward : Worker {
    Buffer<REAL> dwindow{window.size}, dweight{weight.size}, dbias{s.paths * blocks * LANES};

    Backward(const Conv& conv, const Task& job) : Worker(conv, job) {
        dweight.zero();
        dbias.zero();
    }

    void run(int64_t b, int64_t k) {
        const int64_t plane = s.shared() ? b : b * s.paths + k;
        const Sums dx{real(s.dx) + plane * s.order.length * s.channels, s.channels};
        const bool first = k == 0 || !s.shared();
        if (first && !s.order.once)
            Sums{dx.data + task.channels.begin, dx.stride}.clear(s.order.length, task.channels.size());
        // the gradient of the inputs before the tile done last, one window for each block
        pack(state.data, s.dlast ? real(s.dlast) + state_at(b, k) : nullptr, before, task.channels);
        for (int64_t i = s.order.tiles() - 1; i >= 0; --i) {
            const Steps steps(s.order, b, k, i);
            for (int64_t block = 0; block < blocks; ++block) {
                run_block(steps, b, k, i, block);
                dx.put(vectors(dwindow) + before, steps, channel(block), lanes(block), first && s.order.once);
            }
        }
        unpack(real(s.dstate) + state_at(b, k), state.data, before, task.channels);
    }

    INLINE_METHOD void run_block(const Steps& steps, int64_t b, int64_t k, int64_t i, int64_t block) {
        V *x = vectors(window), *dx = vectors(dwindow), *dy = vectors(y), *carry = vectors(state) + block * before;
        load_before(x, b, k, i, block);
        read(x + before, s.x, steps, b, k, channel(block), lanes(block));
        for (int64_t p = 0; p < steps.count + before; ++p) dx[p] = p < steps.count ? V{} : carry[p - steps.count];
        V pre[TILE];
        convolve(steps, b, k, i, block);
        std::memcpy(pre, dy, sizeof pre);
        read(dy, s.dy, steps, b, k, channel(block), lanes(block));
        V* sum_bias = vectors(dbias) + k * blocks + block;
        for (int t = 0; t < steps.count; ++t) {
            if (s.silu) {
                const V slope = sigmoid(pre[t]);
                dy[t] *= slope * (1 + pre[t] * (1 - slope));
            }
            *sum_bias += dy[t];
        }
        const V* w = taps(k, block);
        V* dw = vectors(dweight) + (k * blocks + block) * s.taps;
        for (int64_t tap = 0; tap < s.taps; ++tap) {
            V total = {};
            for (int t = 0; t < steps.count; ++t) {
                if (foreign(steps, b, k, i, t, tap)) continue;
                total += dy[t] * x[t + tap];
                dx[t + tap] += dy[t] * w[tap];
            }
            dw[tap] += total;
        }
        for (int64_t p = 0; p < before; ++p) carry[p] = dx[p];
    }

    // The inputs before a tile: rows of earlier steps, or the initial state.
    void load_before(V* x, int64_t b, int64_t k, int64_t i, int64_t block) {
        for (int64_t p = 0; p < before; ++p) {
            const int64_t step = i * TILE - before + p;
            if (step >= 0) {
                Steps one(0, 1);
                one.row[0] = s.order.row(k, step);
                read(x + p, s.x, one, b, k, channel(block), lanes(block));
                continue;
            }
            const REAL* past = s.state ? real(s.state) + state_at(b, k) : nullptr;
            for (int64_t c = 0; c < LANES; ++c)
                x[p][c] = past && c < lanes(block) ? past[(channel(block) + c) * before + before + step] : 0;
        }
    }

    void store_parameters() const {
        for (int64_t k = 0; k < s.paths; ++k) {
            unpack(real(task.dweight) + k * s.channels * s.taps, dweight.data + k * blocks * s.taps * LANES, s.taps,
                   task.channels);
            unpack(real(task.dbias) + k * s.channels, dbias.data + k * blocks * LANES, 1, task.channels);
        }
    }
};

static void backward(const Conv& s, const Task& task) {
    Backward worker(s, task);
    for (int64_t b = task.batch.begin; b < task.batch.end; ++b)
        for (int64_t k = 0; k < s.paths; ++k) worker.run(b, k);
    worker.store_parameters();
}
