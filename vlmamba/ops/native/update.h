// SPDX-License-Identifier: Apache-2.0
// One step of the selective scan and of the causal convolution, on vectors. Included by update.cpp.

template <class T>
INLINE V load_as(const Operand& m, int64_t b, int64_t c, int lanes) {
    return load(m.at<const T>(b, 0) + c, lanes);
}

INLINE V get(const Operand& m, int64_t b, int64_t c, int lanes) {
#ifdef IN_DOUBLE
    return load_as<double>(m, b, c, lanes);
#else
    if (m.type == BFLOAT) return load_as<Bfloat>(m, b, c, lanes);
    if (m.type == HALF) return load_as<Half>(m, b, c, lanes);
    return load_as<float>(m, b, c, lanes);
#endif
}

INLINE void put(const Operand& m, int64_t b, int64_t c, V v, int lanes) {
#ifdef IN_DOUBLE
    store(m.at<double>(b, 0) + c, v, lanes);
#else
    if (m.type == BFLOAT) return store(m.at<Bfloat>(b, 0) + c, v, lanes);
    if (m.type == HALF) return store(m.at<Half>(b, 0) + c, v, lanes);
    store(m.at<float>(b, 0) + c, v, lanes);
#endif
}

// Here a vector holds neighbouring states of one channel: the state is (B, D, N).
static void state_update(const StateUpdate& s, int64_t b, const Span& channels) {
    for (int64_t c = channels.begin; c < channels.end; c += LANES) {
        const int count = int(smaller(channels.end - c, LANES));
        V delta = get(s.dt, b, c, count);
        if (s.dt_bias) delta += load((const REAL*)s.dt_bias + c, count);
        if (s.softplus) delta = positive_part(delta) + log1p(exp_negative(minus_magnitude(delta)));
        const V x = get(s.x, b, c, count), input = delta * x;
        V y = s.D ? x * load((const REAL*)s.D + c, count) : V{};
        for (int i = 0; i < count; ++i) {
            const int64_t at = (c + i) * s.states;
            const REAL *A = (const REAL*)s.A + at, *old = (const REAL*)s.state + b * s.channels * s.states + at;
            REAL* now = (REAL*)s.next + b * s.channels * s.states + at;
            V total = {};
            for (int64_t n = 0; n < s.states; n += LANES) {
                const int lanes = int(smaller(s.states - n, LANES));
                V h = decay(V{} + delta[i] * REAL(TO_BASE_2), load(A + n, lanes)) * load(old + n, lanes);
                h += input[i] * get(s.B, b, n, lanes);
                store(now + n, h, lanes);
                total += h * get(s.C, b, n, lanes);
            }
            y[i] += sum(total);
        }
        if (s.z.data) y *= silu(get(s.z, b, c, count));
        put(s.out, b, c, y, count);
    }
}

// The state (B, D, W - 1) holds the oldest input first.
static void conv_update(const ConvUpdate& s, int64_t b, const Span& channels) {
    const int64_t before = s.taps - 1;
    for (int64_t c = channels.begin; c < channels.end; c += LANES) {
        const int count = int(smaller(channels.end - c, LANES));
        const V x = get(s.x, b, c, count);
        V y = s.bias ? load((const REAL*)s.bias + c, count) : V{};
        for (int i = 0; i < count; ++i) {
            const REAL* weight = (const REAL*)s.weight + (c + i) * s.taps;
            const REAL* old = (const REAL*)s.state + (b * s.channels + c + i) * before;
            REAL* now = (REAL*)s.next + (b * s.channels + c + i) * before;
            REAL total = weight[before] * x[i];
            for (int64_t w = 0; w < before; ++w) {
                total += weight[w] * old[w];
                now[w] = w + 1 < before ? old[w + 1] : x[i];
            }
            y[i] += total;
        }
        put(s.out, b, c, s.silu ? silu(y) : y, count);
    }
}
