// SPDX-License-Identifier: Apache-2.0
// Forward pass of the selective scan on vectors; continues selective_scan.h.

template <int COUNT>
INLINE void scan_states(const Steps& steps, Tile& tile, const States& p, int64_t first) {
    const V* A = p.A + first;
    V h[COUNT];
    for (int n = 0; n < COUNT; ++n) h[n] = p.start[first + n];
    for (int t = 0; t < steps.count; ++t) {
        const REAL *B = p.B + t * p.count + first, *C = p.C + t * p.count + first;
        V delta = tile.delta[t], input = tile.input[t], y = tile.y[t];
        if (__builtin_expect(steps.fresh[t], 0))
            for (int n = 0; n < COUNT; ++n) h[n] = V{};
#pragma GCC unroll 16
        for (int n = 0; n < COUNT; ++n) {
            h[n] = decay(delta, A[n]) * h[n] + input * B[n];
            y += h[n] * C[n];
        }
        tile.y[t] = y;
    }
    for (int n = 0; n < COUNT; ++n) p.end[first + n] = h[n];
}

// Runs COUNT states at a time from state `first` on, while that many are left; returns the first one left.
template <int COUNT>
INLINE int64_t scan_all(const Steps& steps, Tile& tile, const States& p, int64_t first) {
    for (; first + COUNT <= p.count; first += COUNT) scan_states<COUNT>(steps, tile, p, first);
    return first;
}

struct Forward : Worker {
    // Where the directions add up: the output itself, y kept for the gate's gradient, or memory of this task.
    const bool in_place = !s.y && s.out.type == s.real_type;
    Buffer<REAL> scratch{s.y || in_place ? 0 : s.order.length * task.channels.size()};
    V gate[TILE];

    using Worker::Worker;

    // From the task's first channel on.
    Sums sums(int64_t b, int64_t k) const {
        const int64_t plane = b * s.planes() + s.plane(k), first = task.channels.begin;
        if (s.y) return {real(s.y) + plane * s.order.length * s.channels + first, s.channels};
        if (in_place) return {s.out.at<REAL>(b, s.plane(k)) + first, s.out.strides[2]};
        return {scratch.data, task.channels.size()};
    }

    void run(int64_t b) {
        for (int64_t k = 0; k < s.paths; ++k) {
            const bool first = !s.merge || k == 0, last = !s.merge || k == s.paths - 1;
            const Sums to = sums(b, k);
            if (first && !s.order.once) to.clear(s.order.length, task.channels.size());
            pack(state.data, s.state ? real(s.state) + (b * s.paths + k) * matrix : nullptr, s, task.channels);
            for (int64_t i = 0; i < s.order.tiles(); ++i) run_tile(b, k, i, to, first && s.order.once, last);
            unpack(real(s.last) + (b * s.paths + k) * matrix, state.data, s, task.channels);
            if (last && !(first && s.order.once)) finish(b, k, to);
        }
    }

    void run_tile(int64_t b, int64_t k, int64_t i, const Sums& to, bool first, bool last) {
        const Steps steps = enter(b, k, i);
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t c = channel(block), at = block * padded * LANES;
            V* h = (V*)(state.data + at);
            if (s.kept)
                for (int64_t n = 0; n < s.states; ++n) store(kept(b, k, i) + n * s.channels + c, h[n], lanes(block));
            const States all{(V*)(A.data + k * packed + at), h, h, B.data, C.data, padded};
            tile.prepare<false>(s, steps, b, k, c, lanes(block));
            int64_t n = scan_all<16>(steps, tile, all, 0);
            n = scan_all<8>(steps, tile, all, n);
            n = scan_all<4>(steps, tile, all, n);
            scan_all<1>(steps, tile, all, n);
            const bool done = first && last;
            if (!done || s.y) to.put(tile.y, steps, block * LANES, lanes(block), first);
            if (done) leave(tile.y, steps, b, s.plane(k), c, lanes(block));
        }
    }

    // Gates values that are complete and writes them.
    INLINE_METHOD void leave(V* y, const Steps& steps, int64_t b, int64_t plane, int64_t c, int count) {
        if (s.z.data) {
            read(gate, s.z, steps, b, plane, c, count);
            for (int t = 0; t < steps.count; ++t) y[t] *= silu(gate[t]);
        }
        write(s.out, y, steps, b, plane, c, count);
    }

    void finish(int64_t b, int64_t k, const Sums& from) {
        if (in_place && !s.z.data) return;
        for (int64_t row = 0; row < s.order.length; row += TILE) {
            const Steps steps(row, smaller(row + TILE, s.order.length));
            for (int64_t block = 0; block < blocks; ++block) {
                for (int t = 0; t < steps.count; ++t)
                    tile.y[t] = load(from.data + steps.row[t] * from.stride + block * LANES, lanes(block));
                leave(tile.y, steps, b, s.plane(k), channel(block), lanes(block));
            }
        }
    }
};

static void forward(const Scan& s, const Task& task) {
    Forward worker(s, task);
    for (int64_t b = task.batch.begin; b < task.batch.end; ++b) worker.run(b);
}
