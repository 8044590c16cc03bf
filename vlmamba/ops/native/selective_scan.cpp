// SPDX-License-Identifier: Apache-2.0
// The selective scan for CPU float32, forward and backward; the formula stands in
// vlmamba/ops/selective_scan/reference.py. Plain C interface, called by vlmamba/ops/selective_scan/native.py.
//
// Forward keeps the state before every tile of TILE steps; backward recomputes the states inside a tile.
// Work is cut by direction, then by batch, then by channels; every piece is summed in a fixed order.

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MANY_TARGETS
#include <immintrin.h>
#endif

namespace {

constexpr int TILE = 64;
constexpr int GRAIN = 16;  // channels: the widest vector
constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

struct Operand {  // (B, K, L, X), the last dimension contiguous
    const float* data;
    int64_t strides[3];
    const float* at(int64_t b, int64_t k) const { return data + b * strides[0] + k * strides[1]; }
};

// Mirrored field by field in vlmamba/ops/selective_scan/native.py
struct Scan {
    int64_t batch, paths, length, steps, channels, states, threads, softplus;
    Operand x, dt, B, C, dy;
    const float *A, *D, *dt_bias, *state;
    const int32_t *rows, *sequence;  // (K, steps) and (B, L), may be null
    float *y, *last, *checkpoints;   // checkpoints: null when no gradient is needed
    const float* dlast;
    float *dx, *ddt, *dA, *dB, *dC, *dD, *dbias, *dstate;
};

struct Span {
    int64_t begin, end;
};

struct Task {
    int64_t direction;
    Span batch, channels;
    bool once;  // the path visits every row exactly once: outputs are stored, not added
    float *dA, *dD, *dbias, *dB, *dC;
};

struct Buffer {
    int64_t size;
    float* data;
    explicit Buffer(int64_t n) : size(n), data((float*)::operator new(n * 4, std::align_val_t(64))) {}
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    void zero() { std::memset(data, 0, size * sizeof(float)); }
};

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t padded_states(int64_t states) { return states == 1 ? 1 : (states + 3) / 4 * 4; }

int64_t padded_channels(int64_t channels) { return (channels + GRAIN - 1) / GRAIN * GRAIN; }

int64_t tiles(const Scan& s) { return (s.steps + TILE - 1) / TILE; }

float* checkpoint(const Scan& s, int64_t bk, int64_t tile, const Task& task) {
    int64_t row = (bk * tiles(s) + tile) * padded_channels(s.channels) + task.channels.begin;
    return s.checkpoints + row * padded_states(s.states);
}

void copy(float* to, const float* from, int64_t n) { std::memcpy(to, from, n * sizeof(float)); }

void clear(float* rows, const Scan& s, const Span& channels) {
    for (int64_t row = 0; row < s.length; ++row)
        std::memset(rows + row * s.channels + channels.begin, 0, (channels.end - channels.begin) * 4);
}

#define INLINE_METHOD inline __attribute__((always_inline))

namespace baseline {
#define LANES 4
#include "selective_scan.h"
#undef LANES
}  // namespace baseline

#ifdef MANY_TARGETS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define LANES 8
#include "selective_scan.h"
#undef LANES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,fma,prefer-vector-width=512")
namespace avx512 {
#define LANES 16
#define SCALE_BY_INSTRUCTION
#include "selective_scan.h"
#undef SCALE_BY_INSTRUCTION
#undef LANES
}  // namespace avx512
#pragma GCC pop_options
#endif

using Kernel = void (*)(const Scan&, const Task&);

struct Target {
    const char* name;
    Kernel forward, backward;
};

std::vector<Target> supported_targets() {
    std::vector<Target> found;
#ifdef MANY_TARGETS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back({"avx512", avx512::forward, avx512::backward});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found.push_back({"avx2", avx2::forward, avx2::backward});
#endif
    found.push_back({"baseline", baseline::forward, baseline::backward});
    return found;
}

const std::vector<Target>& targets() {
    static const std::vector<Target> found = supported_targets();
    return found;
}

Target chosen = targets()[0];

bool visits_each_row_once(const Scan& s, int64_t k) {
    if (!s.rows || s.steps != s.length) return !s.rows;
    std::vector<bool> seen(s.length, false);
    for (int64_t t = 0; t < s.steps; ++t) {
        int32_t row = s.rows[k * s.steps + t];
        if (row < 0 || seen[row]) return false;
        seen[row] = true;
    }
    return true;
}

// How a call is cut into pieces: `groups` of batch elements, `splits` of channels, for each direction.
struct Cut {
    int64_t groups, splits, threads;

    explicit Cut(const Scan& s) {
        const int64_t work = s.batch * s.paths * s.steps * s.channels * (s.states + 2);
        threads = smaller(s.threads, 1 + work / (1 << 16));
        const int64_t wanted = threads == 1 ? 1 : (2 * threads + s.paths - 1) / s.paths;
        const int64_t units = padded_channels(s.channels) / GRAIN;
        groups = smaller(s.batch, wanted);
        splits = groups ? smaller(units, (wanted + groups - 1) / groups) : 1;
    }

    std::vector<Task> tasks(const Scan& s) const {
        std::vector<Task> all;
        const int64_t units = padded_channels(s.channels) / GRAIN;
        for (int64_t k = 0; k < s.paths; ++k) {
            const bool once = visits_each_row_once(s, k);
            for (int64_t g = 0; g < groups; ++g)
                for (int64_t i = 0; i < splits; ++i) {
                    Span batch{s.batch * g / groups, s.batch * (g + 1) / groups};
                    const int64_t end = smaller(s.channels, units * (i + 1) / splits * GRAIN);
                    Span channels{units * i / splits * GRAIN, end};
                    all.push_back({k, batch, channels, once, s.dA, s.dD, s.dbias, s.dB, s.dC});
                }
        }
        return all;
    }
};

void run(const Scan& s, const std::vector<Task>& tasks, int64_t threads, Kernel piece) {
    const int64_t count = int64_t(tasks.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; ++i) piece(s, tasks[i]);
}

// out[i] = sum over parts of parts[p][i]
void add_up(float* out, const Buffer& parts, int64_t size) {
    std::memset(out, 0, size * sizeof(float));
    for (const float* part = parts.data; part < parts.data + parts.size; part += size)
        for (int64_t i = 0; i < size; ++i) out[i] += part[i];
}

}  // namespace

extern "C" {

int64_t vlmamba_scan_struct_size() { return sizeof(Scan); }

const char* vlmamba_target() { return chosen.name; }

// Chooses an instruction set by name; 0 when this CPU has none of that name.
int vlmamba_choose_target(const char* name) {
    for (const Target& target : targets())
        if (!std::strcmp(target.name, name)) {
            chosen = target;
            return 1;
        }
    return 0;
}

int64_t vlmamba_scan_checkpoint_size(const Scan* s) {
    return s->batch * s->paths * tiles(*s) * padded_channels(s->channels) * padded_states(s->states);
}

void vlmamba_scan_forward(const Scan* s) {
    Cut cut(*s);
    run(*s, cut.tasks(*s), cut.threads, chosen.forward);
}

void vlmamba_scan_backward(const Scan* s) {
    Cut cut(*s);
    std::vector<Task> tasks = cut.tasks(*s);
    const int64_t vector = s->paths * s->channels, matrix = vector * s->states;
    const int64_t rows = s->batch * s->paths * s->length * s->states;
    Buffer dA(cut.groups * matrix), dD(cut.groups * vector), dbias(dD.size);
    Buffer dB(cut.splits * rows), dC(dB.size);
    dB.zero();
    dC.zero();
    for (size_t i = 0; i < tasks.size(); ++i) {
        const int64_t split = i % cut.splits, group = i / cut.splits % cut.groups;
        tasks[i].dA = dA.data + group * matrix;
        tasks[i].dD = dD.data + group * vector;
        tasks[i].dbias = dbias.data + group * vector;
        tasks[i].dB = dB.data + split * rows;
        tasks[i].dC = dC.data + split * rows;
    }
    run(*s, tasks, cut.threads, chosen.backward);
    add_up(s->dA, dA, matrix);
    add_up(s->dD, dD, vector);
    add_up(s->dbias, dbias, vector);
    add_up(s->dB, dB, rows);
    add_up(s->dC, dC, rows);
}
}
