// SPDX-License-Identifier: Apache-2.0
// Vectors of LANES numbers of type REAL for one instruction set; included by each_target.h.

#ifdef IN_DOUBLE
typedef int64_t Whole;
#else
typedef int32_t Whole;
#endif
typedef REAL V __attribute__((vector_size(sizeof(REAL) * LANES)));
typedef REAL Unaligned __attribute__((vector_size(sizeof(REAL) * LANES), aligned(sizeof(REAL)), may_alias));
typedef Whole I __attribute__((vector_size(sizeof(REAL) * LANES)));

constexpr int TOP_BIT = 8 * sizeof(Whole) - 1;
INLINE V minus_magnitude(V x) { return (V)((I)x | Whole(1) << TOP_BIT); }
INLINE V positive_part(V x) { return (V)((I)x & ~((I)x >> TOP_BIT)); }  // max(x, 0)

// Half precision <-> REAL, a whole vector.
#ifndef IN_DOUBLE
typedef uint16_t Bits __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE V widen(const float* p) { return *(const Unaligned*)p; }
INLINE V widen(const Bfloat* p) { return (V)(__builtin_convertvector(*(const Bits*)p, I) << 16); }
INLINE void narrow(float* p, V v) { *(Unaligned*)p = v; }
INLINE void narrow(Bfloat* p, V v) {
    I bits = (I)v;
    bits = v == v ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : I{} + 0x7fc0;  // to nearest, ties to even
    *(Bits*)p = __builtin_convertvector(bits, Bits);
}

#ifdef HALF_BY_INSTRUCTION
#if LANES == 16
INLINE V widen(const Half* p) { return (V)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INLINE void narrow(Half* p, V v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, 0)); }
#else
INLINE V widen(const Half* p) { return (V)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE void narrow(Half* p, V v) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, 0)); }
#endif
#else
INLINE V widen(const Half* p) {
    const I bits = __builtin_convertvector(*(const Bits*)p, I), magnitude = bits & 0x7fff;
    const V scaled = (V)(magnitude << 13) * 0x1p112f;  // moves the exponent, denormals too
    const I special = (I)(magnitude >= I{} + 0x7c00) & 0x7f800000;
    return (V)((I)scaled | special | (bits & 0x8000) << 16);
}
INLINE void narrow(Half* p, V v) {
    const I sign = (I)v & INT32_MIN, magnitude = (I)v & INT32_MAX;
    const I normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const I denormal = (I)((V)magnitude + 0.5f) - 0x3f000000;  // adding 1/2 rounds at the last place of a half
    I bits = magnitude < I{} + 0x38800000 ? denormal : normal;
    bits = magnitude >= I{} + 0x47800000 ? I{} + 0x7c00 : bits;
    bits = magnitude > I{} + 0x7f800000 ? I{} + 0x7e00 : bits;
    *(Bits*)p = __builtin_convertvector(bits | ((sign >> 16) & 0x8000), Bits);
}
#endif
#else
INLINE V widen(const double* p) { return *(const Unaligned*)p; }
INLINE void narrow(double* p, V v) { *(Unaligned*)p = v; }
#endif

template <class T>
INLINE V load(const T* p, int lanes) {
    if (lanes == LANES) return widen(p);
    T part[LANES] = {};
    for (int i = 0; i < lanes; ++i) part[i] = p[i];
    return widen(part);
}

template <class T>
INLINE void store(T* p, V v, int lanes) {
    if (lanes == LANES) return narrow(p, v);
    T part[LANES];
    narrow(part, v);
    for (int i = 0; i < lanes; ++i) p[i] = part[i];
}

INLINE REAL sum(V v) {
    alignas(64) REAL part[LANES];
    *(V*)part = v;
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
}

#ifdef IN_DOUBLE
constexpr double TO_BASE_2 = 1.4426950408889634, FROM_BASE_2 = 0.6931471805599453;

template <double FUNCTION(double)>
INLINE V each(V v) {
    for (int i = 0; i < LANES; ++i) v[i] = FUNCTION(v[i]);
    return v;
}
INLINE double power_of_two(double x) { return std::exp2(x); }
INLINE double exponential(double x) { return std::exp(x); }
INLINE double log_of_one_plus(double x) { return std::log1p(x); }
INLINE V decay(V delta, V A) { return each<power_of_two>(delta * A); }
INLINE V reciprocal(V x) { return 1 / x; }
INLINE V exp_negative(V x) { return each<exponential>(x); }
INLINE V log1p(V x) { return each<log_of_one_plus>(x); }
#else
constexpr float TO_BASE_2 = LOG2E, FROM_BASE_2 = LN2;

// Polynomials are minimax in relative error; those for 2^r are exactly 1 at r = 0, so that a step of 0 keeps a state.

INLINE V power_of_fraction(V r) {  // |r| <= 1/2, relative error 8e-8
    V p = r * 1.53533619e-4f + 1.33988744e-3f;
    p = p * r + 9.61843736e-3f;
    p = p * r + 5.55033247e-2f;
    p = p * r + 0.240226479f;
    p = p * r + 0.693147203f;
    return p * r + 1.0f;
}

#ifdef SCALE_BY_INSTRUCTION
// 2^(delta * A), relative error 8e-8: with x = delta * A + 1/2, of 2^(x - floor(x) - 1/2) and 2^floor(x)
INLINE V decay(V delta, V A) {
    const V x = delta * A + 0.5f, r = (V)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    V p = r * 1.52723049e-4f + 8.82878725e-4f;
    p = p * r + 6.83886698e-3f;
    p = p * r + 3.92361954e-2f;
    p = p * r + 0.169867083f;
    p = p * r + 0.490129054f;
    p = p * r + 0.707106769f;
    return (V)_mm512_scalef_ps((__m512)p, (__m512)x);
}

// exp of a number <= 0, accurate also where the result is tiny
INLINE V exp_negative(V x) {
    x = (V)_mm512_max_ps(_mm512_set1_ps(-126.0f), (__m512)x);  // gives 0; the second operand goes through if it is NaN
    const V n = (V)_mm512_roundscale_ps((__m512)(x * LOG2E), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const V r = (x * LOG2E - n) + x * 1.92596303e-8f;
    return (V)_mm512_scalef_ps((__m512)power_of_fraction(r), (__m512)n);
}

INLINE V reciprocal(V x) {  // relative error 1e-7
    const V y = (V)_mm512_rcp14_ps((__m512)x);
    return y + y * (1.0f - x * y);
}
#else
INLINE V times_power(V p, V n) { return p * (V)((__builtin_convertvector(n, I) + 127) << 23); }

INLINE V decay(V delta, V A) {  // 2^(delta * A), relative error 8e-8, 0 where it is denormal
    V x = delta * A;
    x = x < -127.0f ? V{} - 127.0f : x;
    x = x > 128.0f ? V{} + 128.0f : x;
    const V n = (x + 12582912.0f) - 12582912.0f;  // rounds to whole numbers: 1.5 * 2^23
    return times_power(power_of_fraction(x - n), n);
}

// exp of a number <= 0, accurate also where the result is tiny
INLINE V exp_negative(V x) {
    x = x < -88.0f ? V{} - 88.0f : x;
    const V n = (x * LOG2E + 12582912.0f) - 12582912.0f, r = (x * LOG2E - n) + x * 1.92596303e-8f;
    return x <= -87.3f ? V{} : times_power(power_of_fraction(r), n);
}

INLINE V reciprocal(V x) { return 1.0f / x; }
#endif

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
#endif

INLINE V sigmoid(V x) {
    const V e = exp_negative(minus_magnitude(x));
    return (x < 0 ? e : V{} + 1) * reciprocal(1 + e);
}

INLINE V silu(V x) { return x * sigmoid(x); }
