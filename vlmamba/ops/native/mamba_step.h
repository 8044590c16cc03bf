// SPDX-License-Identifier: Apache-2.0
// One token through one Mamba-1 layer for one instruction set. A thread owns some channels from the first projection to
// the gate, and some outputs of the others; the threads meet four times a layer.

#include "linear.h"

INLINE void meet() {
#pragma omp barrier
}

template <class T>
INLINE T* writable(const T*, const void* data) {
    return (T*)data;
}

// One thread's share of one layer.
struct Share {
    const MambaLayer& l;
    MambaStep& step;
    const int64_t thread, threads;
    const Span channels = part(l.channels, 16, thread, threads);

    Span of(int64_t outputs) const { return part(outputs, 1, thread, threads); }

    // stream -> x of in_proj, the same in every thread
    void normalize(float* out) const {
        const int64_t width = padded(l.hidden);
        std::memcpy(out, step.stream.data, step.batch * width * sizeof(float));
        if (!l.norm.data) return;
        Buffer<float> weight(width);
        read(weight.data, l.norm, 0, l.hidden);
        for (float* row = out; row < out + step.batch * width; row += width) {
            V squares = {};
            for (int64_t i = 0; i < width; i += LANES) squares += widen(row + i) * widen(row + i);
            const float scale = 1.0f / std::sqrt(total(squares) / float(l.hidden) + float(l.epsilon));
            for (int64_t i = 0; i < l.hidden; ++i) row[i] *= scale * weight.data[i];
        }
    }

    // x of in_proj -> x, and the newest input into the convolution's state
    void convolve() const {
        Buffer<float> weight(LANES * l.taps), window(weight.size);
        float bias[LANES], sums[LANES];
        for (int64_t c = channels.begin; c < channels.end; c += LANES) {
            const int lanes = int(smaller(LANES, channels.end - c));
            read(weight.data, l.conv_weight, c * l.taps, lanes * l.taps);
            read(bias, l.conv_bias, c, lanes);
            for (int64_t b = 0; b < step.batch; ++b) {
                float* row = step.projected.data + b * 2 * l.channels + c;
                with_type(l.conv_state.type, [&](auto kind) {
                    auto* state = writable(kind, l.conv_state.data) + (b * l.channels + c) * l.taps;
                    std::decay_t<decltype(*state)> newest[LANES];
                    store(newest, load(row, lanes), lanes);
                    for (int i = 0; i < lanes; ++i, state += l.taps) {
                        for (int64_t t = 1; t < l.taps; ++t) state[t - 1] = state[t];
                        state[l.taps - 1] = newest[i];
                    }
                });
                read(window.data, l.conv_state, (b * l.channels + c) * l.taps, lanes * l.taps);
                for (int i = 0; i < lanes; ++i) {
                    sums[i] = bias[i];
                    for (int64_t t = 0; t < l.taps; ++t)
                        sums[i] += weight.data[i * l.taps + t] * window.data[i * l.taps + t];
                }
                store(step.x.data + b * padded(l.channels) + c, silu(load(sums, lanes)), lanes);
            }
        }
    }

    // x, dt, B, C, gate -> y in place of x, and the scan's state
    void update() const {
        with_type(l.A_log.type, [&](auto kind) {
            const auto* A_log = decltype(kind)(l.A_log.data);
            for (int64_t b = 0; b < step.batch; ++b)
                for (int64_t c = channels.begin; c < channels.end; c += LANES)
                    update_block(b, c, int(smaller(LANES, channels.end - c)), A_log);
        });
    }

    template <class T>
    INLINE_METHOD void update_block(int64_t b, int64_t c, int lanes, const T* A_log) const {
        const float* row = step.projected.data + b * 2 * l.channels + c;
        const float* B = step.dBC.data + b * (l.rank + 2 * l.states) + l.rank;
        float* at = step.x.data + b * padded(l.channels) + c;
        float skip[LANES], delta[LANES], input[LANES], y[LANES];
        read(skip, l.D, c, lanes);
        const V raw = load(row, lanes), x = load(at, lanes);
        const V dt = positive_part(raw) + log1p(exp_negative(minus_magnitude(raw)));
        *(Unaligned*)delta = dt * LOG2E;
        *(Unaligned*)input = dt * x;
        for (int i = 0; i < lanes; ++i) {
            const int64_t first = (c + i) * l.states;
            float* h = l.state + b * l.channels * l.states + first;
            V sums = {};
            for (int64_t n = 0; n < l.states; n += LANES) {
                const int count = int(smaller(LANES, l.states - n));
                const V A = -decay(V{} + LOG2E, load(A_log + first + n, count));  // -exp(A_log)
                const V state = decay(V{} + delta[i], A) * load(h + n, count) + load(B + n, count) * input[i];
                store(h + n, state, count);
                sums += state * load(B + l.states + n, count);
            }
            y[i] = total(sums);
        }
        store(at, (load(y, lanes) + load(skip, lanes) * x) * silu(load(row + l.channels, lanes)), lanes);
    }

    // out_proj's outputs -> stream
    void close() const {
        const Span mine = of(l.hidden);
        for (int64_t b = 0; b < step.batch; ++b) {
            const float* in = step.mixed.data + b * l.hidden;
            float* out = step.stream.data + b * padded(l.hidden);
            for (int64_t i = mine.begin; i < mine.end; ++i) out[i] = (l.norm.data ? out[i] : 0.0f) + in[i];
        }
    }
};

static void mamba_step(const MambaLayer& l, MambaStep& step, int64_t thread, int64_t threads) {
    const Share share{l, step, thread, threads};
    const Span mine = share.channels, gate{l.channels + mine.begin, l.channels + mine.end};
    const int64_t both = 2 * l.channels, sizes = l.rank + 2 * l.states;
    Buffer<float> input(step.batch * larger(padded(l.hidden), padded(l.rank)));
    share.normalize(input.data);
    multiply(l.in_proj, input.data, step.batch, mine, step.projected.data, both);
    multiply(l.in_proj, input.data, step.batch, gate, step.projected.data, both);
    share.convolve();
    meet();
    multiply(l.x_proj, step.x.data, step.batch, share.of(sizes), step.dBC.data, sizes);
    meet();
    input.zero();
    for (int64_t b = 0; b < step.batch; ++b)
        std::memcpy(input.data + b * padded(l.rank), step.dBC.data + b * sizes, l.rank * sizeof(float));
    multiply(l.dt_proj, input.data, step.batch, mine, step.projected.data, both);
    share.update();
    meet();
    multiply(l.out_proj, step.x.data, step.batch, share.of(l.hidden), step.mixed.data, l.hidden);
    share.close();
    meet();
}
