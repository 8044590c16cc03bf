// SPDX-License-Identifier: Apache-2.0
// One token through Mamba-1 layers: the call, for mamba_step.cpp and mamba_step.h.

#pragma once

#include "linear_call.h"

// Mirrored field by field in ops/native/step.py
struct MambaLayer {
    int64_t hidden, channels, states, rank, taps;
    Linear in_proj, x_proj, dt_proj, out_proj;
    Values conv_weight, conv_bias, A_log, D;  // (channels, taps), (channels), (channels, states), (channels)
    Values norm;                              // (hidden), or null: the mixer alone, without norm and residual
    double epsilon;
    Values conv_state;  // (batch, channels, taps), oldest first; updated
    float* state;       // (batch, channels, states); updated
};

// What the threads share; numbers of one row of the batch after the other.
struct MambaStep {
    int64_t batch;
    Buffer<float> stream;     // padded(hidden): what goes into a layer and comes out
    Buffer<float> projected;  // 2 x channels: of in_proj, later dt and the gate
    Buffer<float> x;          // padded(channels): after the convolution, later y
    Buffer<float> dBC;        // rank + 2 x states: of x_proj
    Buffer<float> mixed;      // hidden: of out_proj

    MambaStep(const MambaLayer& l, int64_t rows)
        : batch(rows),
          stream(rows * padded(l.hidden)),
          projected(rows * 2 * l.channels),
          x(rows * padded(l.channels)),
          dBC(rows * (l.rank + 2 * l.states)),
          mixed(rows * l.hidden) {
        stream.zero();
        x.zero();
    }
};
