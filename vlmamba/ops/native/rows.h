// SPDX-License-Identifier: Apache-2.0
// Rows of operands <-> vectors of LANES channels, step by step along an order. Included by the kernels' headers.

INLINE REAL* real(void* p) { return (REAL*)p; }
INLINE const REAL* real(const void* p) { return (const REAL*)p; }

// Asks for the next channels too: the hardware does not foresee a walk over rows.
template <class T>
static void read_steps(V* out, const Operand& m, const Steps& steps, int64_t b, int64_t k, int64_t c, int lanes) {
    const T* base = m.at<const T>(b, k) + c;
    for (int t = 0; t < steps.count; ++t) {
        out[t] = V{};
        if (steps.row[t] < 0) continue;
        const T* row = base + steps.row[t] * m.strides[2];
        __builtin_prefetch(row + LANES);
        out[t] = load(row, lanes);
    }
}

static void read(V* out, const Operand& m, const Steps& steps, int64_t b, int64_t k, int64_t c, int lanes) {
#ifdef IN_DOUBLE
    read_steps<double>(out, m, steps, b, k, c, lanes);
#else
    if (m.type == FLOAT) read_steps<float>(out, m, steps, b, k, c, lanes);
    if (m.type == BFLOAT) read_steps<Bfloat>(out, m, steps, b, k, c, lanes);
    if (m.type == HALF) read_steps<Half>(out, m, steps, b, k, c, lanes);
#endif
}

template <class T>
static void write_steps(const Operand& m, const V* in, const Steps& steps, int64_t b, int64_t k, int64_t c, int lanes) {
    T* base = m.at<T>(b, k) + c;
    for (int t = 0; t < steps.count; ++t)
        if (steps.row[t] >= 0) store(base + steps.row[t] * m.strides[2], in[t], lanes);
}

static void write(const Operand& m, const V* in, const Steps& steps, int64_t b, int64_t k, int64_t c, int lanes) {
#ifdef IN_DOUBLE
    write_steps<double>(m, in, steps, b, k, c, lanes);
#else
    if (m.type == FLOAT) write_steps<float>(m, in, steps, b, k, c, lanes);
    if (m.type == BFLOAT) write_steps<Bfloat>(m, in, steps, b, k, c, lanes);
    if (m.type == HALF) write_steps<Half>(m, in, steps, b, k, c, lanes);
#endif
}

// Rows of REAL, one plane for each batch element and direction or one that the directions share. `first`: no other
// direction has written here.
struct Sums {
    REAL* data;
    int64_t stride;

    void clear(int64_t rows, int64_t width) const {
        for (int64_t row = 0; row < rows; ++row) std::memset(data + row * stride, 0, width * sizeof(REAL));
    }
    INLINE_METHOD void put(const V* in, const Steps& steps, int64_t c, int lanes, bool first) const {
        for (int t = 0; t < steps.count; ++t) {
            if (steps.row[t] < 0) continue;
            REAL* row = data + steps.row[t] * stride + c;
            store(row, first ? in[t] : in[t] + load(row, lanes), lanes);
        }
    }
};
