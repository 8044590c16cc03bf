// SPDX-License-Identifier: Apache-2.0
// The selective scan for one instruction set. Included once per set by selective_scan.cpp, inside its own
// namespace and with its own target options; LANES is the number of floats in one vector.
//
// A vector holds LANES neighbouring channels. The states of these channels stay in registers over a tile of
// TILE steps; all that is done once per step and channel (softplus, gradients of x and dt) is a loop of its own.

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
    int row[TILE];    // -1: padded
    bool fresh[TILE];  // another packed sequence begins

    Steps(const Scan& s, int64_t b, int64_t k, int64_t tile) {
        int64_t first = tile * TILE;
        count = int(s.steps - first < TILE ? s.steps - first : TILE);
        for (int t = 0; t < count; ++t) {
            row[t] = row_at(s, k, first + t);
            fresh[t] = false;
            if (s.sequence && first + t) {
                const int32_t* sequence = s.sequence + b * s.length;
                int before = row_at(s, k, first + t - 1);
                fresh[t] = sequence[row[t] < 0 ? 0 : row[t]] != sequence[before < 0 ? 0 : before];
            }
        }
    }

    static int row_at(const Scan& s, int64_t k, int64_t step) {
        return s.rows ? s.rows[k * s.steps + step] : int(step);
    }
};

// Asks for the next channels too: the hardware does not foresee a walk over rows.
INLINE V load_row(const float* base, int64_t stride, int row, int lanes) {
    if (row < 0) return V{};
    __builtin_prefetch(base + row * stride + LANES);
    return load(base + row * stride, lanes);
}

// (L, N) rows of B or C -> (count, padded states), padded steps and states 0
static void gather_matrix(float* out, const Operand& m, const Scan& s, const Steps& steps, int64_t b, int64_t k) {
    int64_t padded = padded_states(s.states);
    for (int t = 0; t < steps.count; ++t, out += padded) {
        const float* row = m.at(b, k) + steps.row[t] * m.strides[2];
        for (int64_t n = 0; n < padded; ++n) out[n] = steps.row[t] < 0 || n >= s.states ? 0.0f : row[n];
    }
}

// (D, N) of the channels [begin, end) <-> vectors of channels (blocks, padded states, LANES)
static void pack(float* out, const float* in, const Scan& s, const Span& channels, float scale) {
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

// One vector of channels over one tile, (count) vectors each
struct Tile {
    V x[TILE], delta[TILE], slope[TILE], input[TILE];  // slope: of softplus; input: delta * x

    template <bool BACKWARD>
    INLINE_METHOD void prepare(const Scan& s, const Steps& steps, int64_t b, int64_t k, int64_t c, int lanes) {
        const float *x_base = s.x.at(b, k) + c, *dt_base = s.dt.at(b, k) + c;
        V bias = s.dt_bias ? load(s.dt_bias + k * s.channels + c, lanes) : V{};
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
        }
    }
};

template <int COUNT>
INLINE void scan_states(const Steps& steps, const Tile& tile, V* y, const V* A, V* state, const float* B,
                        const float* C, int64_t stride) {
    V h[COUNT];
    for (int n = 0; n < COUNT; ++n) h[n] = state[n];
    for (int t = 0; t < steps.count; ++t, B += stride, C += stride) {
        V delta = tile.delta[t], input = tile.input[t], out = y[t];
        if (__builtin_expect(steps.fresh[t], 0))
            for (int n = 0; n < COUNT; ++n) h[n] = V{};
#pragma GCC unroll 16
        for (int n = 0; n < COUNT; ++n) {
            h[n] = exp2(delta * A[n]) * h[n] + input * B[n];
            out += h[n] * C[n];
        }
        y[t] = out;
    }
    for (int n = 0; n < COUNT; ++n) state[n] = h[n];
}

static void scan_tile(const Steps& steps, const Tile& tile, V* y, const V* A, V* state, const float* B,
                      const float* C, int padded) {
    for (int n = 0; n < padded;) {
        int left = padded - n;
        if (left >= 16) {
            scan_states<16>(steps, tile, y, A + n, state + n, B + n, C + n, padded);
            n += 16;
        } else if (left >= 8) {
            scan_states<8>(steps, tile, y, A + n, state + n, B + n, C + n, padded);
            n += 8;
        } else if (left >= 4) {
            scan_states<4>(steps, tile, y, A + n, state + n, B + n, C + n, padded);
            n += 4;
        } else {
            scan_states<1>(steps, tile, y, A + n, state + n, B + n, C + n, padded);
            n += 1;
        }
    }
}

static void forward(const Scan& s, const Task& task) {
    const int64_t k = task.direction, padded = padded_states(s.states), matrix = s.channels * s.states;
    const int64_t blocks = (task.channels.end - task.channels.begin + LANES - 1) / LANES;
    Buffer A(blocks * padded * LANES), state(A.size), B(TILE * padded), C(TILE * padded);
    pack(A.data, s.A + k * matrix, s, task.channels, LOG2E);
    Tile tile;
    V y[TILE];
    for (int64_t b = task.batch.begin; b < task.batch.end; ++b) {
        const int64_t bk = b * s.paths + k;
        float* out = s.y + bk * s.length * s.channels;
        if (!task.once) clear(out, s, task.channels);
        pack(state.data, s.state + bk * matrix, s, task.channels, 1.0f);
        for (int64_t i = 0; i < tiles(s); ++i) {
            Steps steps(s, b, k, i);
            gather_matrix(B.data, s.B, s, steps, b, k);
            gather_matrix(C.data, s.C, s, steps, b, k);
            if (s.checkpoints) copy(checkpoint(s, bk, i, task), state.data, state.size);
            for (int64_t c = task.channels.begin, at = 0; c < task.channels.end; c += LANES, at += padded * LANES) {
                const int lanes = int(task.channels.end - c < LANES ? task.channels.end - c : LANES);
                tile.prepare<false>(s, steps, b, k, c, lanes);
                V skip = s.D ? load(s.D + k * s.channels + c, lanes) : V{};
                for (int t = 0; t < steps.count; ++t) y[t] = skip * tile.x[t];
                scan_tile(steps, tile, y, (V*)(A.data + at), (V*)(state.data + at), B.data, C.data, int(padded));
                for (int t = 0; t < steps.count; ++t)
                    if (steps.row[t] >= 0) store(out + steps.row[t] * s.channels + c, y[t], lanes, !task.once);
            }
        }
        unpack(s.last + bk * matrix, state.data, s, task.channels);
    }
}

// What backward adds to a Tile: gradients of the steps (all states together), in vectors of channels.
struct Gradients {
    V y[TILE], input[TILE], exponent[TILE];  // exponent: of delta through delta * A, in units of ln 2
};

// Recomputes COUNT states of the tile from its checkpoint, then walks back. g: gradient of the state after the
// tile's last step, replaced by the one before its first.
template <int COUNT>
INLINE void backward_states(const Steps& steps, const Tile& tile, Gradients& d, const V* A, const V* state, V* g,
                            V* dA, const float* B, const float* C, V* dB, V* dC, int64_t stride) {
    V decay[TILE][COUNT], h[TILE + 1][COUNT];
    for (int n = 0; n < COUNT; ++n) h[0][n] = state[n];
    for (int t = 0; t < steps.count; ++t) {
        V delta = tile.delta[t], input = tile.input[t];
#pragma GCC unroll 4
        for (int n = 0; n < COUNT; ++n) {
            V e = exp2(delta * A[n]);
            if (__builtin_expect(steps.fresh[t], 0)) e = V{};
            decay[t][n] = e;
            h[t + 1][n] = e * h[t][n] + input * B[t * stride + n];
        }
    }
    V grad[COUNT], a[COUNT], sum_a[COUNT];
    for (int n = 0; n < COUNT; ++n) grad[n] = g[n], a[n] = A[n], sum_a[n] = V{};
    for (int t = steps.count - 1; t >= 0; --t) {
        V dy = d.y[t], delta = tile.delta[t], input = tile.input[t], dinput = d.input[t], dexponent = d.exponent[t];
        const float *B_t = B + t * stride, *C_t = C + t * stride;
        V *dB_t = dB + t * stride, *dC_t = dC + t * stride;
#pragma GCC unroll 4
        for (int n = 0; n < COUNT; ++n) {
            grad[n] += dy * C_t[n];
            dC_t[n] += dy * h[t + 1][n];
            dB_t[n] += grad[n] * input;
            dinput += grad[n] * B_t[n];
            grad[n] *= decay[t][n];
            V along = grad[n] * h[t][n];  // gradient of delta * A
            dexponent += along * a[n];
            sum_a[n] += along * delta;
        }
        d.input[t] = dinput;
        d.exponent[t] = dexponent;
    }
    for (int n = 0; n < COUNT; ++n) g[n] = grad[n], dA[n] += sum_a[n];
}

static void backward_tile(const Steps& steps, const Tile& tile, Gradients& d, const V* A, const V* state, V* g,
                          V* dA, const float* B, const float* C, V* dB, V* dC, int padded) {
    if (padded == 1) {
        backward_states<1>(steps, tile, d, A, state, g, dA, B, C, dB, dC, 1);
        return;
    }
    for (int n = 0; n < padded; n += 4)
        backward_states<4>(steps, tile, d, A + n, state + n, g + n, dA + n, B + n, C + n, dB + n, dC + n, padded);
}

static void add_matrix(float* out, const Buffer& in, const Scan& s, const Steps& steps) {
    int64_t padded = padded_states(s.states);
    for (int t = 0; t < steps.count; ++t)
        for (int64_t n = 0; n < s.states && steps.row[t] >= 0; ++n)
            out[steps.row[t] * s.states + n] += sum(((const V*)in.data)[t * padded + n]);
}

// Writes the gradients of x and dt of one tile; adds to the sums of D and dt_bias.
INLINE void finish(const Scan& s, const Task& task, const Steps& steps, const Tile& tile, const Gradients& d,
                   int64_t bk, int64_t c, int lanes, V skip, V* sums) {
    float *dx = s.dx + bk * s.length * s.channels + c, *ddt = s.ddt + bk * s.length * s.channels + c;
    V dD = {}, dbias = {};
    for (int t = 0; t < steps.count; ++t) {
        V ddelta = d.exponent[t] * LN2 + d.input[t] * tile.x[t];
        if (s.softplus) ddelta *= tile.slope[t];
        dD += d.y[t] * tile.x[t];
        dbias += ddelta;
        if (steps.row[t] < 0) continue;
        store(dx + steps.row[t] * s.channels, d.input[t] * tile.delta[t] + d.y[t] * skip, lanes, !task.once);
        store(ddt + steps.row[t] * s.channels, ddelta, lanes, !task.once);
    }
    sums[0] += dD;
    sums[1] += dbias;
}

static void backward(const Scan& s, const Task& task) {
    const int64_t k = task.direction, padded = padded_states(s.states), matrix = s.channels * s.states;
    const int64_t blocks = (task.channels.end - task.channels.begin + LANES - 1) / LANES;
    Buffer A(blocks * padded * LANES), g(A.size), dA(A.size), state(A.size), sums(blocks * 2 * LANES);
    Buffer B(TILE * padded), C(TILE * padded), dB(TILE * padded * LANES), dC(TILE * padded * LANES);
    pack(A.data, s.A + k * matrix, s, task.channels, LOG2E);
    dA.zero();
    sums.zero();
    Tile tile;
    Gradients d;
    for (int64_t b = task.batch.begin; b < task.batch.end; ++b) {
        const int64_t bk = b * s.paths + k;
        if (!task.once) {
            clear(s.dx + bk * s.length * s.channels, s, task.channels);
            clear(s.ddt + bk * s.length * s.channels, s, task.channels);
        }
        pack(g.data, s.dlast ? s.dlast + bk * matrix : nullptr, s, task.channels, 1.0f);
        for (int64_t i = tiles(s) - 1; i >= 0; --i) {
            Steps steps(s, b, k, i);
            gather_matrix(B.data, s.B, s, steps, b, k);
            gather_matrix(C.data, s.C, s, steps, b, k);
            dB.zero();
            dC.zero();
            copy(state.data, checkpoint(s, bk, i, task), state.size);
            for (int64_t c = task.channels.begin, block = 0; c < task.channels.end; c += LANES, ++block) {
                const int lanes = int(task.channels.end - c < LANES ? task.channels.end - c : LANES);
                const int64_t at = block * padded * LANES;
                tile.prepare<true>(s, steps, b, k, c, lanes);
                for (int t = 0; t < steps.count; ++t) {
                    d.y[t] = load_row(s.dy.at(b, k) + c, s.dy.strides[2], steps.row[t], lanes);
                    d.input[t] = d.exponent[t] = V{};
                }
                backward_tile(steps, tile, d, (V*)(A.data + at), (V*)(state.data + at), (V*)(g.data + at),
                              (V*)(dA.data + at), B.data, C.data, (V*)dB.data, (V*)dC.data, int(padded));
                V skip = s.D ? load(s.D + k * s.channels + c, lanes) : V{};
                finish(s, task, steps, tile, d, bk, c, lanes, skip, (V*)sums.data + 2 * block);
            }
            add_matrix(task.dB + bk * s.length * s.states, dB, s, steps);
            add_matrix(task.dC + bk * s.length * s.states, dC, s, steps);
        }
        unpack(s.dstate + bk * matrix, g.data, s, task.channels);
    }
    unpack(task.dA + k * matrix, dA.data, s, task.channels);
    for (int64_t c = task.channels.begin; c < task.channels.end; ++c) {
        const int64_t i = c - task.channels.begin, at = i / LANES * 2 * LANES + i % LANES;
        task.dD[k * s.channels + c] = sums.data[at];
        task.dbias[k * s.channels + c] = sums.data[at + LANES];
    }
}

#undef INLINE
