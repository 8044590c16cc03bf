// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b for a few rows of x and one instruction set. The weights are read once, one after the other,
// and are all that matters: a row of x stays in the nearest cache.

#if LANES == 16 && !defined(__clang__)
#define WITH_VNNI
#endif

#if LANES == 16
INLINE float total(V v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE V widen(const int8_t* p) {
    return (V)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
#elif LANES == 8
INLINE float total(V v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
INLINE V widen(const int8_t* p) {
    return (V)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
#else
INLINE float total(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }
INLINE V widen(const int8_t* p) {
    V v;
    for (int i = 0; i < LANES; ++i) v[i] = p[i];
    return v;
}
#endif

template <class F>
INLINE void with_type(int64_t type, F&& function) {
    if (type == BFLOAT)
        function((const Bfloat*)nullptr);
    else if (type == HALF)
        function((const Half*)nullptr);
    else
        function((const float*)nullptr);
}

// Numbers `first` to `first + count` as floats; zeros where there are none.
INLINE void read(float* out, const Values& values, int64_t first, int64_t count) {
    if (!values.data) {
        std::memset(out, 0, count * sizeof(float));
        return;
    }
    with_type(values.type, [&](auto kind) {
        const auto* in = decltype(kind)(values.data) + first;
        for (int64_t i = 0; i < count; i += LANES) {
            const int lanes = int(smaller(LANES, count - i));
            store(out + i, load(in + i, lanes), lanes);
        }
    });
}

template <int ROWS, class T>
INLINE void dot(V (&sums)[ROWS], const T* weight, const float* x, int64_t stride, int64_t inputs) {
    constexpr int CHAINS = ROWS == 1 ? 8 : ROWS == 2 ? 4 : 2;  // independent sums hide the latency of one
    V chains[ROWS][CHAINS] = {};
    int64_t c = 0;
    for (; c + CHAINS * LANES <= inputs; c += CHAINS * LANES)
        for (int j = 0; j < CHAINS; ++j) {
            const V w = widen(weight + c + j * LANES);
            for (int r = 0; r < ROWS; ++r) chains[r][j] += w * widen(x + r * stride + c + j * LANES);
        }
    for (; c < inputs; c += LANES) {
        const V w = load(weight + c, int(smaller(LANES, inputs - c)));
        for (int r = 0; r < ROWS; ++r) chains[r][0] += w * widen(x + r * stride + c);
    }
    for (int r = 0; r < ROWS; ++r) {
        sums[r] = chains[r][0];
        for (int j = 1; j < CHAINS; ++j) sums[r] += chains[r][j];
    }
}

template <int ROWS>
INLINE void dot(V (&sums)[ROWS], const int8_t* weight, const float* scale, const float* x, int64_t stride,
                int64_t inputs) {
    for (int r = 0; r < ROWS; ++r) sums[r] = V{};
    for (int64_t c = 0; c < inputs; c += GROUP, ++scale) {
        V parts[ROWS] = {};
#pragma GCC unroll 16
        for (int j = 0; j < GROUP; j += LANES) {
            const V w = widen(weight + c + j);
            for (int r = 0; r < ROWS; ++r) parts[r] += w * widen(x + r * stride + c + j);
        }
        for (int r = 0; r < ROWS; ++r) sums[r] += parts[r] * *scale;
    }
}

#ifdef WITH_VNNI
// GROUP numbers of x in 16 bits: unit * (256 high + low), unit = their largest magnitude / LARGEST. VNNI multiplies
// unsigned by signed bytes, so weights get 128 added; `start` takes 128 (256 high + low) off, four columns a lane.
struct Split {
    __m512i high, low, start;
    float unit;
};
constexpr float LARGEST = 32512.0f;

static void split(Split& out, const float* x) {
    V largest = {}, poison = {};  // poison: NaN where x is not finite
    for (int c = 0; c < GROUP; c += LANES) {
        const V v = widen(x + c), size = v < 0 ? -v : v;
        largest = size > largest ? size : largest;
        poison += v * 0.0f;
    }
    const float most = _mm512_reduce_max_ps((__m512)largest), inverse = most > 0 ? LARGEST / most : 0;
    for (int i = 0; i < GROUP / LANES; ++i) {
        const __m512i whole = _mm512_cvtps_epi32((__m512)(widen(x + i * LANES) * inverse));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
        const __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, 8));
        ((__m128i*)&out.high)[i] = _mm512_cvtepi32_epi8(high);
        ((__m128i*)&out.low)[i] = _mm512_cvtepi32_epi8(low);
    }
    const int8_t *high = (const int8_t*)&out.high, *low = (const int8_t*)&out.low;
    int32_t start[LANES] = {};
    for (int i = 0; i < GROUP; ++i) start[i / 4] -= 128 * (256 * high[i] + low[i]);
    std::memcpy(&out.start, start, sizeof start);
    out.unit = most / LARGEST + total(poison);
}

template <int ROWS>
__attribute__((target("avx512vnni"))) static void multiply_split(const Linear& l, const Split* x,
                                                                 const Span& outputs, float* y,
                                                                 int64_t stride) {
    const int64_t groups = padded(l.inputs) / GROUP;
    const __m512i* weight = (const __m512i*)l.weight.data + outputs.begin * groups;
    const float* scale = l.scale + outputs.begin * groups;
    for (int64_t o = outputs.begin; o < outputs.end; ++o, weight += groups, scale += groups) {
        V sums[ROWS] = {};
        for (int64_t g = 0; g < groups; ++g) {
            const __m512i w = _mm512_xor_si512(_mm512_loadu_si512(weight + g), _mm512_set1_epi8(-128));
            for (int r = 0; r < ROWS; ++r) {
                const Split& part = x[r * groups + g];
                const __m512i high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, part.high);
                const __m512i low = _mm512_dpbusd_epi32(part.start, w, part.low);
                const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
                sums[r] += (V)_mm512_cvtepi32_ps(both) * (scale[g] * part.unit);  // both < 2^24: exact
            }
        }
        for (int r = 0; r < ROWS; ++r) y[r * stride + o] += total(sums[r]);
    }
}
#endif

template <int ROWS>
static void multiply_rows(const Linear& l, const float* x, const Span& outputs, float* y, int64_t stride) {
    const int64_t width = padded(l.inputs), groups = width / GROUP;
    for (int r = 0; r < ROWS; ++r) read(y + r * stride + outputs.begin, l.bias, outputs.begin, outputs.size());
#ifdef WITH_VNNI
    if (l.scale && uses_vnni()) {
        Buffer<Split> parts(ROWS * groups);
        for (int64_t i = 0; i < ROWS * groups; ++i) split(parts.data[i], x + i * GROUP);
        return multiply_split<ROWS>(l, parts.data, outputs, y, stride);
    }
#endif
    const auto each_output = [&](auto dot_with) {
        for (int64_t o = outputs.begin; o < outputs.end; ++o) {
            V sums[ROWS];
            dot_with(sums, o);
            for (int r = 0; r < ROWS; ++r) y[r * stride + o] += total(sums[r]);
        }
    };
    if (l.scale)
        return each_output([&](V(&sums)[ROWS], int64_t o) {
            dot(sums, (const int8_t*)l.weight.data + o * width, l.scale + o * groups, x, width, l.inputs);
        });
    with_type(l.weight.type, [&](auto kind) {
        each_output([&](V(&sums)[ROWS], int64_t o) {
            dot(sums, decltype(kind)(l.weight.data) + o * l.inputs, x, width, l.inputs);
        });
    });
}

// Some of the outputs. x: (rows, padded(inputs)) with zeros behind the inputs; y: (rows, stride).
static void multiply(const Linear& l, const float* x, int64_t rows, const Span& outputs, float* y,
                     int64_t stride) {
    for (; rows >= 4; rows -= 4, x += 4 * padded(l.inputs), y += 4 * stride)
        multiply_rows<4>(l, x, outputs, y, stride);
    if (rows == 3) multiply_rows<3>(l, x, outputs, y, stride);
    if (rows == 2) multiply_rows<2>(l, x, outputs, y, stride);
    if (rows == 1) multiply_rows<1>(l, x, outputs, y, stride);
}

#undef WITH_VNNI
