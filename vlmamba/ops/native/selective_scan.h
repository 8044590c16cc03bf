// SPDX-License-Identifier: Apache-2.0
// The selective scan for one instruction set. Included once per set by selective_scan.cpp, inside its own
// namespace and with its own target options; LANES is the number of floats in one vector.
//
// A vector holds LANES neighbouring channels. The states of these channels stay in registers over a tile of
// TILE steps; what is done once per step and channel (softplus, gradients of x and dt) is a loop of its own.

#define INLINE static INLINE_METHOD

typedef float V __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(4 * LANES)));

INLINE V load(const float* p, int lanes) {
    if (lanes == LANES) return *(const Unaligned*)p;
    alignas(64) float part[LANES] = {};
    for (int i = 0; i < lanes; ++i) part[i] = p[i];
    return *(const V*)part;
}

INLINE void store(float* p, V v, int lanes, bool accumulate) {
    if (accumulate) v += load(p, lanes);
    if (lanes == LANES) {
        *(Unaligned*)p = v;
        return;
    }
    alignas(64) float part[LANES];
    *(V*)part = v;
    for (int i = 0; i < lanes; ++i) p[i] = part[i];
}

INLINE float sum(V v) {
    alignas(64) float part[LANES];
    *(V*)part = v;
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

// 2^(n + r), n whole, |r| <= 1/2; exactly 1 at 0, relative error 8e-8, 0 where the result is denormal
INLINE V power(V n, V r) {
    V p = r * 1.53533619e-4f + 1.33988744e-3f;
    p = p * r + 9.61843736e-3f;
    p = p * r + 5.55033247e-2f;
    p = p * r + 0.240226479f;
    p = p * r + 0.693147203f;
    p = p * r + 1.0f;
#ifdef SCALE_BY_INSTRUCTION
    return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return p * (V)((__builtin_convertvector(n, I) + 127) << 23);
#endif
}

INLINE V exp2(V x) {
#ifdef SCALE_BY_INSTRUCTION
    V r = (V)_mm512_reduce_ps((__m512)x, 8);
    return power(x - r, r);
#else
    x = x < -127.0f ? V{} - 127.0f : x;
    x = x > 128.0f ? V{} + 128.0f : x;
    V n = (x + 12582912.0f) - 12582912.0f;  // rounds to whole numbers: 1.5 * 2^23
    return power(n, x - n);
#endif
}

// exp of a number <= 0, accurate also where the result is tiny
INLINE V exp_negative(V x) {
    x = x < -88.0f ? V{} - 88.0f : x;
    V n = (x * LOG2E + 12582912.0f) - 12582912.0f;
    V r = (x * LOG2E - n) + x * 1.92596303e-8f;
    V e = power(n, r);
    return x <= -87.3f ? V{} : e;
}

INLINE V log1p(V t) {  // 0 <= t <= 1, relative error 5e-9
    V p = t * -3.24402409e-3f + 1.98514575e-2f;
    p = p * t - 5.69595250e-2f;
    p = p * t + 0.106036539f;
    p = p * t - 0.153055920f;
    p = p * t + 0.196759391f;
    p = p * t - 0.249541336f;
    p = p * t + 0.333299624f;
    p = p * t - 0.499999024f;
    p = p * t + 0.999999995f;
    return p * t;
}

// The steps of one tile of one direction of one batch element.
struct Steps {
    int count;
    int row[TILE];     // -1: padded
    bool fresh[TILE];  // another packed sequence begins

    Steps(const Scan& s, int64_t b, int64_t k, int64_t tile) {
        int64_t first = tile * TILE;
        count = int(smaller(s.steps - first, TILE));
        for (int t = 0; t < count; ++t) {
            row[t] = row_at(s, k, first + t);
            int before = first + t ? row_at(s, k, first + t - 1) : row[t];
            fresh[t] = s.sequence && number(s, b, row[t]) != number(s, b, before);
        }
    }

    static int row_at(const Scan& s, int64_t k, int64_t step) {
        return s.rows ? s.rows[k * s.steps + step] : int(step);
    }

    static int number(const Scan& s, int64_t b, int row) {
        return s.sequence[b * s.length + (row < 0 ? 0 : row)];
    }
};

// Asks for the next channels too: the hardware does not foresee a walk over rows.
INLINE V load_row(const float* base, int64_t stride, int row, int lanes) {
    if (row < 0) return V{};
    __builtin_prefetch(base + row * stride + LANES);
    return load(base + row * stride, lanes);
}

// Rows of B or C (L, N) -> (count, padded states); padded steps and states are 0.
static void gather(float* out, const Operand& m, const Scan& s, const Steps& steps, int64_t b, int64_t k) {
    int64_t padded = padded_states(s.states);
    for (int t = 0; t < steps.count; ++t, out += padded) {
        const float* row = m.at(b, k) + steps.row[t] * m.strides[2];
        for (int64_t n = 0; n < padded; ++n) out[n] = steps.row[t] < 0 || n >= s.states ? 0.0f : row[n];
    }
}

// (D, N) of a task's channels <-> vectors of channels (blocks, padded states, LANES)
static void pack(float* out, const float* in, const Scan& s, const Span& channels, float scale = 1.0f) {
    int64_t padded = padded_states(s.states);
    for (int64_t c = channels.begin; c < channels.end; c += LANES, out += padded * LANES)
        for (int64_t n = 0; n < padded; ++n)
            for (int64_t i = 0; i < LANES; ++i) {
                bool real = in && c + i < channels.end && n < s.states;
                out[n * LANES + i] = real ? in[(c + i) * s.states + n] * scale : 0.0f;
            }
}

static void unpack(float* out, const float* in, const Scan& s, const Span& channels) {
    int64_t padded = padded_states(s.states);
    for (int64_t c = channels.begin; c < channels.end; c += LANES, in += padded * LANES)
        for (int64_t i = 0; i < LANES && c + i < channels.end; ++i)
            for (int64_t n = 0; n < s.states; ++n) out[(c + i) * s.states + n] = in[n * LANES + i];
}

// One vector of channels over one tile.
struct Tile {
    V x[TILE], delta[TILE], slope[TILE], input[TILE];  // slope: of softplus; input: delta * x
    V y[TILE];                                         // in backward its gradient
    V dinput[TILE], dexponent[TILE];  // gradients; dexponent: of delta through delta * A, in units of ln 2

    template <bool BACKWARD>
    INLINE_METHOD void prepare(const Scan& s, const Steps& steps, int64_t b, int64_t k, int64_t c,
                               int lanes) {
        const float *x_base = s.x.at(b, k) + c, *dt_base = s.dt.at(b, k) + c;
        V bias = s.dt_bias ? load(s.dt_bias + k * s.channels + c, lanes) : V{};
        V skip = s.D ? load(s.D + k * s.channels + c, lanes) : V{};
        for (int t = 0; t < steps.count; ++t) {
            V raw = load_row(dt_base, s.dt.strides[2], steps.row[t], lanes) + bias;
            x[t] = load_row(x_base, s.x.strides[2], steps.row[t], lanes);
            if (s.softplus) {
                V small = exp_negative(raw < 0.0f ? raw : -raw);
                if (BACKWARD) slope[t] = (raw < 0.0f ? small : V{} + 1.0f) / (1.0f + small);
                raw = (raw < 0.0f ? V{} : raw) + log1p(small);
            }
            delta[t] = raw;
            input[t] = raw * x[t];
            y[t] = BACKWARD ? load_row(s.dy.at(b, k) + c, s.dy.strides[2], steps.row[t], lanes) : skip * x[t];
            if (BACKWARD) dinput[t] = dexponent[t] = V{};
        }
    }
};

// All states of one vector of channels, and B, C and their gradients for the tile: (count, states).
struct States {
    const V *A, *start;  // start: before the tile
    V* end;              // after the tile; in backward the gradient
    const float *B, *C;
    int64_t count;
    V *dA = nullptr, *dB = nullptr, *dC = nullptr;
};

template <int COUNT>
INLINE void scan_states(const Steps& steps, Tile& tile, const States& p, int64_t first) {
    const V* A = p.A + first;
    V h[COUNT];
    for (int n = 0; n < COUNT; ++n) h[n] = p.start[first + n];
    for (int t = 0; t < steps.count; ++t) {
        const float *B = p.B + t * p.count + first, *C = p.C + t * p.count + first;
        V delta = tile.delta[t], input = tile.input[t], y = tile.y[t];
        if (__builtin_expect(steps.fresh[t], 0))
            for (int n = 0; n < COUNT; ++n) h[n] = V{};
#pragma GCC unroll 16
        for (int n = 0; n < COUNT; ++n) {
            h[n] = exp2(delta * A[n]) * h[n] + input * B[n];
            y += h[n] * C[n];
        }
        tile.y[t] = y;
    }
    for (int n = 0; n < COUNT; ++n) p.end[first + n] = h[n];
}

// Recomputes the states of the tile, then walks back: takes the gradient of the state after the tile's last
// step, leaves that of the state before its first.
template <int COUNT>
INLINE void backward_states(const Steps& steps, Tile& tile, const States& p, int64_t first) {
    V decay[TILE][COUNT], h[TILE + 1][COUNT], g[COUNT], A[COUNT], dA[COUNT] = {};
    for (int n = 0; n < COUNT; ++n) {
        h[0][n] = p.start[first + n];
        g[n] = p.end[first + n];
        A[n] = p.A[first + n];
    }
    for (int t = 0; t < steps.count; ++t)
#pragma GCC unroll 4
        for (int n = 0; n < COUNT; ++n) {
            decay[t][n] = __builtin_expect(steps.fresh[t], 0) ? V{} : exp2(tile.delta[t] * A[n]);
            h[t + 1][n] = decay[t][n] * h[t][n] + tile.input[t] * p.B[t * p.count + first + n];
        }
    for (int t = steps.count - 1; t >= 0; --t) {
        const int64_t at = t * p.count + first;
        V dy = tile.y[t], delta = tile.delta[t], input = tile.input[t];
        V dinput = tile.dinput[t], dexponent = tile.dexponent[t];
#pragma GCC unroll 4
        for (int n = 0; n < COUNT; ++n) {
            g[n] += dy * p.C[at + n];
            p.dC[at + n] += dy * h[t + 1][n];
            p.dB[at + n] += g[n] * input;
            dinput += g[n] * p.B[at + n];
            g[n] *= decay[t][n];
            V along = g[n] * h[t][n];  // gradient of delta * A
            dexponent += along * A[n];
            dA[n] += along * delta;
        }
        tile.dinput[t] = dinput;
        tile.dexponent[t] = dexponent;
    }
    for (int n = 0; n < COUNT; ++n) {
        p.end[first + n] = g[n];
        p.dA[first + n] += dA[n];
    }
}

// Runs COUNT states at a time from state `first` on, while that many are left; returns the first one left.
template <int COUNT, bool BACKWARD>
INLINE int64_t run_states(const Steps& steps, Tile& tile, const States& p, int64_t first) {
    for (; first + COUNT <= p.count; first += COUNT)
        if (BACKWARD)
            backward_states<COUNT>(steps, tile, p, first);
        else
            scan_states<COUNT>(steps, tile, p, first);
    return first;
}

// One task: a direction, some batch elements, some channels.
struct Worker {
    const Scan& s;
    const Task& task;
    const int64_t k = task.direction, padded = padded_states(s.states), matrix = s.channels * s.states;
    const int64_t blocks = (task.channels.end - task.channels.begin + LANES - 1) / LANES;
    Buffer A{blocks * padded * LANES}, state{A.size}, B{TILE * padded}, C{TILE * padded};
    Tile tile;

    Worker(const Scan& scan, const Task& job) : s(scan), task(job) {
        pack(A.data, s.A + k * matrix, s, task.channels, LOG2E);
    }

    int64_t pair(int64_t b) const { return b * s.paths + k; }
    float* rows(float* base, int64_t b) const { return base + pair(b) * s.length * s.channels; }
    int64_t channel(int64_t block) const { return task.channels.begin + block * LANES; }
    int lanes(int64_t block) const { return int(smaller(task.channels.end - channel(block), LANES)); }

    Steps enter(int64_t b, int64_t i) {
        Steps steps(s, b, k, i);
        gather(B.data, s.B, s, steps, b, k);
        gather(C.data, s.C, s, steps, b, k);
        return steps;
    }

    void forward_tile(int64_t b, int64_t i) {
        const Steps steps = enter(b, i);
        float* y = rows(s.y, b);
        if (s.checkpoints) copy(checkpoint(s, pair(b), i, task), state.data, state.size);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t c = channel(block), at = block * padded * LANES;
            V* h = (V*)(state.data + at);
            const States all{(V*)(A.data + at), h, h, B.data, C.data, padded};
            tile.prepare<false>(s, steps, b, k, c, lanes(block));
            int64_t n = run_states<16, false>(steps, tile, all, 0);
            n = run_states<8, false>(steps, tile, all, n);
            n = run_states<4, false>(steps, tile, all, n);
            run_states<1, false>(steps, tile, all, n);
            for (int t = 0; t < steps.count; ++t)
                if (steps.row[t] >= 0)
                    store(y + steps.row[t] * s.channels + c, tile.y[t], lanes(block), !task.once);
        }
    }
};

static void forward(const Scan& s, const Task& task) {
    Worker w(s, task);
    for (int64_t b = task.batch.begin; b < task.batch.end; ++b) {
        if (!task.once) clear(w.rows(s.y, b), s, task.channels);
        pack(w.state.data, s.state + w.pair(b) * w.matrix, s, task.channels);
        for (int64_t i = 0; i < tiles(s); ++i) w.forward_tile(b, i);
        unpack(s.last + w.pair(b) * w.matrix, w.state.data, s, task.channels);
    }
}

struct BackwardWorker : Worker {
    Buffer g{A.size}, dA{A.size}, sums{blocks * 2 * LANES};  // sums: gradients of D and dt_bias
    Buffer dB{TILE * padded * LANES}, dC{dB.size};

    BackwardWorker(const Scan& scan, const Task& job) : Worker(scan, job) {
        dA.zero();
        sums.zero();
    }

    void backward_tile(int64_t b, int64_t i) {
        const Steps steps = enter(b, i);
        dB.zero();
        dC.zero();
        const float* start = checkpoint(s, pair(b), i, task);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t at = block * padded * LANES;
            copy(state.data, start + at, padded * LANES);
            const States all{(V*)(A.data + at), (V*)state.data, (V*)(g.data + at),  B.data,    C.data,
                             padded,            (V*)(dA.data + at), (V*)dB.data, (V*)dC.data};
            tile.prepare<true>(s, steps, b, k, channel(block), lanes(block));
            run_states<1, true>(steps, tile, all, run_states<4, true>(steps, tile, all, 0));
            finish(steps, b, block);
        }
        add_matrix(task.dB + pair(b) * s.length * s.states, dB, steps);
        add_matrix(task.dC + pair(b) * s.length * s.states, dC, steps);
    }

    INLINE_METHOD void finish(const Steps& steps, int64_t b, int64_t block) {
        const int64_t c = channel(block);
        const V skip = s.D ? load(s.D + k * s.channels + c, lanes(block)) : V{};
        float *dx = rows(s.dx, b) + c, *ddt = rows(s.ddt, b) + c;
        V dD = {}, dbias = {};
        for (int t = 0; t < steps.count; ++t) {
            V ddelta = tile.dexponent[t] * LN2 + tile.dinput[t] * tile.x[t];
            if (s.softplus) ddelta *= tile.slope[t];
            dD += tile.y[t] * tile.x[t];
            dbias += ddelta;
            if (steps.row[t] < 0) continue;
            const int64_t row = steps.row[t] * s.channels;
            store(dx + row, tile.dinput[t] * tile.delta[t] + tile.y[t] * skip, lanes(block), !task.once);
            store(ddt + row, ddelta, lanes(block), !task.once);
        }
        V* sum_block = (V*)sums.data + 2 * block;
        sum_block[0] += dD;
        sum_block[1] += dbias;
    }

    void add_matrix(float* out, const Buffer& in, const Steps& steps) const {
        for (int t = 0; t < steps.count; ++t)
            for (int64_t n = 0; n < s.states && steps.row[t] >= 0; ++n)
                out[steps.row[t] * s.states + n] += sum(((const V*)in.data)[t * padded + n]);
    }
};

static void backward(const Scan& s, const Task& task) {
    BackwardWorker w(s, task);
    for (int64_t b = task.batch.begin; b < task.batch.end; ++b) {
        for (float* rows : {w.rows(s.dx, b), w.rows(s.ddt, b)})
            if (!task.once) clear(rows, s, task.channels);
        pack(w.g.data, s.dlast ? s.dlast + w.pair(b) * w.matrix : nullptr, s, task.channels);
        for (int64_t i = tiles(s) - 1; i >= 0; --i) w.backward_tile(b, i);
        unpack(s.dstate + w.pair(b) * w.matrix, w.g.data, s, task.channels);
    }
    unpack(task.dA + w.k * w.matrix, w.dA.data, s, task.channels);
    for (int64_t c = task.channels.begin; c < task.channels.end; ++c) {
        const int64_t i = c - task.channels.begin, at = i / LANES * 2 * LANES + i % LANES;
        task.dD[w.k * s.channels + c] = w.sums.data[at];
        task.dbias[w.k * s.channels + c] = w.sums.data[at + LANES];
    }
}

#undef INLINE
