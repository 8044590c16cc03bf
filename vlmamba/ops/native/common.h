// SPDX-License-Identifier: Apache-2.0
// What every kernel of the library shares. Plain C++17: no torch, no Python.
//
// A kernel is written once, on vectors of LANES floats, in a header. Its .cpp file names that header in KERNELS
// and includes each_target.h, which compiles it for every instruction set, each in a namespace of its own; TARGETS
// lists one function of all of them and `chosen_target()` says at run time which this CPU takes.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define MANY_TARGETS
#include <immintrin.h>
#define TARGETS(function) {baseline::function, avx2::function, avx512::function}
#else
#define TARGETS(function) {baseline::function}
#endif

#define INLINE_METHOD inline __attribute__((always_inline))
#define INLINE static INLINE_METHOD

// Number of the chosen instruction set in TARGETS.
int chosen_target();

constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

// Types of operands, mirrored by `TYPES` in __init__.py.
enum Type : int64_t { FLOAT, BFLOAT, HALF, DOUBLE };
struct Bfloat {
    uint16_t bits;
};
struct Half {
    uint16_t bits;
};

struct Operand {  // (B, K, L, X) of any type, the last dimension contiguous
    void* data;
    int64_t strides[3], type;

    template <class T>
    T* at(int64_t b, int64_t k) const {
        return (T*)data + b * strides[0] + k * strides[1];
    }
};

struct Span {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

template <class T>
struct Buffer {
    int64_t size;
    T* data;
    explicit Buffer(int64_t n) : size(n), data((T*)::operator new(n * sizeof(T), std::align_val_t(64))) {}
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    void zero() { std::memset(data, 0, size * sizeof(T)); }
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Part i of `count` nearly equal parts of 0..size, cut at multiples of `grain`.
inline Span part(int64_t size, int64_t grain, int64_t i, int64_t count) {
    const int64_t units = (size + grain - 1) / grain;
    return {units * i / count * grain, smaller(size, units * (i + 1) / count * grain)};
}

constexpr int TILE = 64;   // steps; forward keeps a state for each tile
constexpr int GRAIN = 16;  // channels: the widest vector

// In which order rows are visited. `once`: every direction visits every row exactly once, so that results are stored,
// not added.
struct Order {
    int64_t length, steps, once;
    const int32_t *rows, *sequence;  // (K, steps), null for 0..length-1; packed sequence of each row (B, length) or null

    int64_t tiles() const { return (steps + TILE - 1) / TILE; }
    int64_t row(int64_t k, int64_t step) const { return rows ? rows[k * steps + step] : step; }
    int number(int64_t b, int64_t row) const { return sequence[b * length + larger(row, 0)]; }
};

// The steps of one tile of one direction of one batch element, or some rows one after another.
struct Steps {
    int count;
    int64_t row[TILE];  // -1: padded
    bool fresh[TILE];   // another packed sequence begins

    Steps(const Order& order, int64_t b, int64_t k, int64_t tile) {
        const int64_t first = tile * TILE;
        count = int(smaller(order.steps - first, TILE));
        for (int t = 0; t < count; ++t) {
            row[t] = order.row(k, first + t);
            const int64_t before = first + t ? order.row(k, first + t - 1) : row[t];
            fresh[t] = order.sequence && order.number(b, row[t]) != order.number(b, before);
        }
    }

    Steps(int64_t begin, int64_t end) : count(int(end - begin)) {
        for (int t = 0; t < count; ++t) row[t] = begin + t;
    }
};

// How a call is cut into pieces: `groups` of batch elements times `splits` of channels, in multiples of `grain`.
struct Cut {
    int64_t batch, channels, grain, threads, groups, splits;

    Cut(int64_t batch, int64_t channels, int64_t grain, int64_t most_threads, int64_t work)
        : batch(batch), channels(channels), grain(grain) {
        threads = smaller(most_threads, 1 + work / (1 << 16));
        const int64_t wanted = threads == 1 ? 1 : 2 * threads;
        groups = smaller(batch, wanted);
        splits = groups ? smaller((channels + grain - 1) / grain, (wanted + groups - 1) / groups) : 1;
    }

    // piece(group, split, batch elements, channels) for every piece
    template <class Piece>
    void run(Piece piece) const {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
        for (int64_t i = 0; i < groups * splits; ++i) {
            const int64_t group = i / splits, split = i % splits;
            piece(group, split, part(batch, 1, group, groups), part(channels, grain, split, splits));
        }
    }
};

// out[i] = sum over parts of parts[p][i], always in the same order
template <class T>
void add_up(void* out, const Buffer<T>& parts, int64_t size) {
    std::memset(out, 0, size * sizeof(T));
    for (const T* part = parts.data; part < parts.data + parts.size; part += size)
        for (int64_t i = 0; i < size; ++i) ((T*)out)[i] += part[i];
}
