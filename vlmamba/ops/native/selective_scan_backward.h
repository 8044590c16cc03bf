// SPDX-License-Identifier: Apache-2.0
// Backward pass of the selective scan on vectors; continues selective_scan.h.

// Recomputes the states of the tile, then walks back: takes the gradient of the state after the tile's last
// step, leaves that of the state before its first.
template <int COUNT>
INLINE void backward_states(const Steps& steps, Tile& tile, const States& p, int64_t first) {
    V kept[TILE][COUNT], h[TILE + 1][COUNT], g[COUNT], A[COUNT], dA[COUNT] = {};
    for (int n = 0; n < COUNT; ++n) {
        h[0][n] = p.start[first + n];
        g[n] = p.end[first + n];
        A[n] = p.A[first + n];
    }
    for (int t = 0; t < steps.count; ++t)
#pragma GCC unroll 4
        for (int n = 0; n < COUNT; ++n) {
            kept[t][n] = __builtin_expect(steps.fresh[t], 0) ? V{} : decay(tile.delta[t], A[n]);
            h[t + 1][n] = kept[t][n] * h[t][n] + tile.input[t] * p.B[t * p.count + first + n];
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
            g[n] *= kept[t][n];
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

template <int COUNT>
INLINE int64_t backward_all(const Steps& steps, Tile& tile, const States& p, int64_t first) {
    for (; first + COUNT <= p.count; first += COUNT) backward_states<COUNT>(steps, tile, p, first);
    return first;
}

struct Backward : Worker {
    Buffer<REAL> g{packed}, dB{TILE * padded * LANES}, dC{dB.size}, dA{A.size}, vectors{s.paths * blocks * 2 * LANES};
    Buffer<REAL> gated{s.z.data ? s.order.length * task.channels.size() : 0};  // gradient of y before the gate

    Backward(const Scan& scan, const Task& job) : Worker(scan, job) {
        dA.zero();
        vectors.zero();
    }

    void run(int64_t b) {
        if (s.z.data) enter_gate(b);
        for (int64_t k = 0; k < s.paths; ++k) {
            const Sums dx = sums(s.dx, s.x, b, k), ddt = sums(s.ddt, s.dt, b, k);
            if (!s.order.once && s.first(s.x, k)) dx.clear(s.order.length, task.channels.size());
            if (!s.order.once && s.first(s.dt, k)) ddt.clear(s.order.length, task.channels.size());
            pack(g.data, s.dlast ? real(s.dlast) + (b * s.paths + k) * matrix : nullptr, s, task.channels);
            for (int64_t i = s.order.tiles() - 1; i >= 0; --i) run_tile(b, k, i, dx, ddt);
            unpack(real(s.dstate) + (b * s.paths + k) * matrix, g.data, s, task.channels);
        }
    }

    // A gradient's plane, from the task's first channel on.
    Sums sums(void* gradient, const Operand& of, int64_t b, int64_t k) const {
        const int64_t plane = s.shared(of) ? b : b * s.paths + k;
        return {real(gradient) + plane * s.order.length * s.channels + task.channels.begin, s.channels};
    }

    // out = y * silu(z): the gradients of z and of y
    void enter_gate(int64_t b) {
        const Sums to{gated.data, task.channels.size()};
        for (int64_t row = 0; row < s.order.length; row += TILE) {
            const Steps steps(row, smaller(row + TILE, s.order.length));
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t c = channel(block);
                V *dout = tile.x, *z = tile.input;
                read(dout, s.dout, steps, b, 0, c, lanes(block));
                read(z, s.z, steps, b, 0, c, lanes(block));
                const REAL* y = real(s.y) + b * s.order.length * s.channels + c;
                for (int t = 0; t < steps.count; ++t) {
                    const V slope = sigmoid(z[t]), value = load(y + steps.row[t] * s.channels, lanes(block));
                    tile.y[t] = dout[t] * value * slope * (1 + z[t] * (1 - slope));
                    dout[t] *= z[t] * slope;
                }
                write(s.dz, tile.y, steps, b, 0, c, lanes(block));
                to.put(dout, steps, block * LANES, lanes(block), true);
            }
        }
    }

    void run_tile(int64_t b, int64_t k, int64_t i, const Sums& dx, const Sums& ddt) {
        const Steps steps = enter(b, k, i);
        const Operand before{gated.data - task.channels.begin, {0, 0, task.channels.size()}, s.real_type};
        dB.zero();
        dC.zero();
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t c = channel(block), at = block * padded * LANES;
            V* start = (V*)state.data;
            for (int64_t n = 0; n < padded; ++n)
                start[n] = n < s.states ? load(kept(b, k, i) + n * s.channels + c, lanes(block)) : V{};
            const States all{(V*)(A.data + k * packed + at),  start,         (V*)(g.data + at), B.data, C.data, padded,
                             (V*)(dA.data + k * packed + at), (V*)dB.data, (V*)dC.data};
            tile.prepare<true>(s, steps, b, k, c, lanes(block));
            read(tile.y, s.z.data ? before : s.dout, steps, b, s.plane(k), c, lanes(block));
            backward_all<1>(steps, tile, all, backward_all<4>(steps, tile, all, 0));
            leave(steps, k, block, dx, ddt);
        }
        add_matrix(task.dB, s.B, dB, steps, b, k);
        add_matrix(task.dC, s.C, dC, steps, b, k);
    }

    INLINE_METHOD void leave(const Steps& steps, int64_t k, int64_t block, const Sums& dx, const Sums& ddt) {
        const V skip = s.D ? load(real(s.D) + k * s.channels + channel(block), lanes(block)) : V{};
        V dD = {}, dbias = {};
        for (int t = 0; t < steps.count; ++t) {
            V ddelta = tile.dexponent[t] * REAL(FROM_BASE_2) + tile.dinput[t] * tile.x[t];
            if (s.softplus) ddelta *= tile.slope[t];
            dD += tile.y[t] * tile.x[t];
            dbias += ddelta;
            tile.x[t] = tile.dinput[t] * tile.delta[t] + tile.y[t] * skip;
            tile.delta[t] = ddelta;
        }
        dx.put(tile.x, steps, block * LANES, lanes(block), s.order.once && s.first(s.x, k));
        ddt.put(tile.delta, steps, block * LANES, lanes(block), s.order.once && s.first(s.dt, k));
        V* sums = (V*)vectors.data + 2 * (k * blocks + block);
        sums[0] += dD;
        sums[1] += dbias;
    }

    void add_matrix(void* part, const Operand& of, const Buffer<REAL>& in, const Steps& steps, int64_t b, int64_t k) {
        REAL* out = real(part) + (s.shared(of) ? b : b * s.paths + k) * s.order.length * s.states;
        for (int t = 0; t < steps.count; ++t)
            for (int64_t n = 0; n < s.states && steps.row[t] >= 0; ++n)
                out[steps.row[t] * s.states + n] += sum(((const V*)in.data)[t * padded + n]);
    }

    void store_parameters() const {
        for (int64_t k = 0; k < s.paths; ++k) {
            unpack(real(task.dA) + k * matrix, dA.data + k * packed, s, task.channels);
            for (int64_t c = task.channels.begin; c < task.channels.end; ++c) {
                const int64_t i = c - task.channels.begin;
                const REAL* sums = vectors.data + 2 * (k * blocks + i / LANES) * LANES + i % LANES;
                real(task.dD)[k * s.channels + c] = sums[0];
                real(task.dbias)[k * s.channels + c] = sums[LANES];
            }
        }
    }
};

static void backward(const Scan& s, const Task& task) {
    Backward worker(s, task);
    for (int64_t b = task.batch.begin; b < task.batch.end; ++b) worker.run(b);
    worker.store_parameters();
}
