// SPDX-License-Identifier: Apache-2.0
// Mamba-2's scan on vectors of LANES channels of one group, and its one-step form. Included by ssd.cpp.

#include "rows.h"

static REAL at(const Operand& m, int64_t b, int64_t row, int64_t i) {
#ifdef IN_DOUBLE
    return m.at<double>(b, 0)[row * m.strides[2] + i];
#else
    const int64_t where = row * m.strides[2] + i;
    if (m.type == FLOAT) return m.at<float>(b, 0)[where];
    return m.type == BFLOAT ? load(m.at<Bfloat>(b, 0) + where, 1)[0] : load(m.at<Half>(b, 0) + where, 1)[0];
#endif
}

// A head's time step and decay from the raw number.
struct Step {
    REAL delta, decay;

    Step(const Ssd& s, REAL raw, int64_t head) {
        if (s.dt_bias) raw += real(s.dt_bias)[head];
        if (s.softplus) raw = raw > 0 ? raw + std::log1p(std::exp(-raw)) : std::log1p(std::exp(raw));
        delta = raw < REAL(s.low) ? REAL(s.low) : raw > REAL(s.high) ? REAL(s.high) : raw;
        decay = std::exp(delta * real(s.A)[head]);
    }
};

// (channels, N) <-> vectors of channels (N, LANES)
static void pack(V* out, const REAL* in, int64_t states, int lanes) {
    for (int64_t n = 0; n < states; ++n)
        for (int i = 0; i < LANES; ++i) out[n][i] = in && i < lanes ? in[i * states + n] : 0;
}

static void unpack(REAL* out, const V* in, int64_t states, int lanes) {
    for (int i = 0; i < lanes; ++i)
        for (int64_t n = 0; n < states; ++n) out[i * states + n] = in[n][i];
}

struct Tile {
    int count;
    V decay[TILE], input[TILE], y[TILE];
};

// B and C of a tile lie in stripes (N / STRIPE, interval, STRIPE): rows of whole N would share a few cache sets.
constexpr int STRIPE = 16;

template <int COUNT>
INLINE int64_t scan_states(const Ssd& s, Tile& tile, V* state, const REAL* B, const REAL* C, int64_t first) {
    for (; first + COUNT <= s.states; first += COUNT) {
        const int64_t stripe = first / STRIPE * STRIPE * s.interval + first % STRIPE;
        V h[COUNT];
        for (int n = 0; n < COUNT; ++n) h[n] = state[first + n];
        for (int t = 0; t < tile.count; ++t) {
            const REAL *B_t = B + stripe + t * STRIPE, *C_t = C + stripe + t * STRIPE;
            const V decay = tile.decay[t], input = tile.input[t];
            V even = tile.y[t], odd = {};
#pragma GCC unroll 16
            for (int n = 0; n < COUNT; ++n) {
                h[n] = decay * h[n] + input * B_t[n];
                (n % 2 ? odd : even) += h[n] * C_t[n];
            }
            tile.y[t] = even + odd;
        }
        for (int n = 0; n < COUNT; ++n) state[first + n] = h[n];
    }
    return first;
}

// One task: some batch elements, some heads.
struct Forward {
    const Ssd& s;
    const Span heads;
    const int64_t blocks = (heads.size() * s.size + LANES - 1) / LANES + s.groups;
    Buffer<REAL> B{(s.states + STRIPE - 1) / STRIPE * STRIPE * s.interval}, C{B.size}, delta{heads.size() * s.interval}, decay{delta.size};
    Buffer<V> state{blocks * s.states};
    V x[TILE], z[TILE];
    Tile tile;

    Forward(const Ssd& ssd, Span span) : s(ssd), heads(span) {}

    // body(channel, lanes, state) for every vector of channels of the task's heads in a group
    template <class Body>
    void each_block(int64_t group, Body body) {
        const int64_t share = s.heads / s.groups;
        const int64_t end = smaller(heads.end, (group + 1) * share) * s.size;
        int64_t c = larger(heads.begin, group * share) * s.size, block = (c - heads.begin * s.size) / LANES + group;
        for (; c < end; c += LANES, ++block) body(c, int(smaller(end - c, LANES)), state.data + block * s.states);
    }

    void run(int64_t b) {
        const int64_t share = s.heads / s.groups, matrix = s.heads * s.size * s.states;
        const int64_t first = heads.begin / share, last = (heads.end - 1) / share;
        for (int64_t group = first; group <= last; ++group)
            each_block(group, [&](int64_t c, int lanes, V* h) {
                pack(h, s.state ? real(s.state) + b * matrix + c * s.states : nullptr, s.states, lanes);
            });
        for (int64_t begin = 0, i = 0; begin < s.order.length; begin += s.interval, ++i) {
            Steps steps(begin, smaller(begin + s.interval, s.order.length));
            prepare(steps, b);
            for (int64_t group = first; group <= last; ++group) {
                gather(B.data, s.B, steps, b, group);
                gather(C.data, s.C, steps, b, group);
                each_block(group, [&](int64_t c, int lanes, V* h) {
                    REAL* kept = real(s.kept) + (b * s.chunks() + i) * matrix + c * s.states;
                    if (s.kept) unpack(kept, h, s.states, lanes);
                    run_block(steps, b, c, lanes, h);
                });
            }
        }
        for (int64_t group = first; group <= last; ++group)
            each_block(group, [&](int64_t c, int lanes, V* h) {
                unpack(real(s.last) + b * matrix + c * s.states, h, s.states, lanes);
            });
    }

    void prepare(const Steps& steps, int64_t b) {
        for (int64_t head = heads.begin; head < heads.end; ++head)
            for (int t = 0; t < steps.count; ++t) {
                const int64_t row = steps.row[t], i = (head - heads.begin) * s.interval + t;
                const Step step(s, at(s.dt, b, row, head), head);
                const bool fresh = s.order.sequence && row && s.order.number(b, row) != s.order.number(b, row - 1);
                delta.data[i] = step.delta;
                decay.data[i] = fresh ? 0 : step.decay;
            }
    }

    void gather(REAL* out, const Operand& m, const Steps& steps, int64_t b, int64_t group) {
        for (int64_t n = 0; n < s.states; n += LANES) {
            const int lanes = int(smaller(s.states - n, LANES));
            read(x, m, steps, b, 0, group * s.states + n, lanes);
            REAL* stripe = out + n / STRIPE * STRIPE * s.interval + n % STRIPE;
            for (int t = 0; t < steps.count; ++t) store(stripe + t * STRIPE, x[t], lanes);
        }
    }

    void run_block(const Steps& steps, int64_t b, int64_t c, int lanes, V* h) {
        const V skip = s.D ? load(real(s.D) + c, lanes) : V{};
        read(x, s.x, steps, b, 0, c, lanes);
        tile.count = steps.count;
        for (int t = 0; t < steps.count; ++t) {
            V step = {}, kept = {};
            for (int i = 0; i < lanes; ++i) {
                const int64_t head = ((c + i) / s.size - heads.begin) * s.interval + t;
                step[i] = delta.data[head];
                kept[i] = decay.data[head];
            }
            tile.decay[t] = kept;
            tile.input[t] = step * x[t];
            tile.y[t] = skip * x[t];
        }
        int64_t n = scan_states<16>(s, tile, h, B.data, C.data, 0);
        n = scan_states<4>(s, tile, h, B.data, C.data, n);
        scan_states<1>(s, tile, h, B.data, C.data, n);
        if (s.y)
            Sums{real(s.y) + b * s.order.length * s.channels(), s.channels()}.put(tile.y, steps, c, lanes, true);
        if (s.z.data) {
            read(z, s.z, steps, b, 0, c, lanes);
            for (int t = 0; t < steps.count; ++t) tile.y[t] *= silu(z[t]);
        }
        write(s.out, tile.y, steps, b, 0, c, lanes);
    }
};

static void forward(const Ssd& s, const Span& batch, const Span& heads) {
    Forward worker(s, heads);
    for (int64_t b = batch.begin; b < batch.end; ++b) worker.run(b);
}

// One step: a vector holds neighbouring states of one channel.
static void update(const Ssd& s, const Span& batch, const Span& heads) {
    Buffer<REAL> row(s.size), B(s.states), C(s.states), gate(s.size);
    const Steps one(0, 1);
    const auto take = [&](REAL* out, const Operand& m, int64_t b, int64_t first, int64_t count) {
        for (int64_t i = 0; i < count; i += LANES) {
            V v[TILE];
            const int lanes = int(smaller(count - i, LANES));
            read(v, m, one, b, 0, first + i, lanes);
            store(out + i, v[0], lanes);
        }
    };
    for (int64_t b = batch.begin; b < batch.end; ++b)
        for (int64_t head = heads.begin; head < heads.end; ++head) {
            const int64_t group = head / (s.heads / s.groups), first = head * s.size;
            const Step step(s, at(s.dt, b, 0, head), head);
            take(row.data, s.x, b, first, s.size);
            take(B.data, s.B, b, group * s.states, s.states);
            take(C.data, s.C, b, group * s.states, s.states);
            for (int64_t p = 0; p < s.size; ++p) {
                const int64_t where = (b * s.channels() + first + p) * s.states;
                const V decay = V{} + step.decay, input = V{} + step.delta * row.data[p];
                V total = {};
                for (int64_t n = 0; n < s.states; n += LANES) {
                    const int lanes = int(smaller(s.states - n, LANES));
                    V h = decay * load(real(s.state) + where + n, lanes) + input * load(B.data + n, lanes);
                    store(real(s.last) + where + n, h, lanes);
                    total += h * load(C.data + n, lanes);
                }
                row.data[p] = sum(total) + (s.D ? real(s.D)[first + p] * row.data[p] : 0);
            }
            if (s.z.data) take(gate.data, s.z, b, first, s.size);
            for (int64_t p = 0; p < s.size; p += LANES) {
                const int lanes = int(smaller(s.size - p, LANES));
                V y[TILE];
                y[0] = load(row.data + p, lanes);
                if (s.z.data) y[0] *= silu(load(gate.data + p, lanes));
                write(s.out, y, one, b, 0, first + p, lanes);
            }
        }
}
