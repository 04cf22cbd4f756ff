// Adaptive LayerNorm on CPU, fp32. Every row of x (and y, and the outputs) is `width` consecutive
// floats, rows follow each other; a modulation has one row per group, `stride` floats apart, so that
// slices of a wider tensor need no copy.
#pragma once

#include "common/simd.h"

namespace cd {

struct Modulation {
    const float* data;
    int64_t stride;
    const float* row(int64_t group) const { return data + group * stride; }
};

// out = layer_norm(x) * (1 + scale) + shift; stats[row] = {mean, 1 / sqrt(variance + eps)}.
void adaln_forward(Layout layout, const float* x, Modulation shift, Modulation scale, float eps, float* out,
                   float* stats);

// From grad (of out): dx, and dshift and dscale, both [groups, width].
void adaln_backward(Layout layout, const float* grad, const float* x, const float* stats, Modulation scale,
                    float* dx, float* dshift, float* dscale);

// x_new = x + gate * y; out and stats as above, of x_new.
void gated_adaln_forward(Layout layout, const float* x, const float* y, Modulation gate, Modulation shift,
                         Modulation scale, float eps, float* x_new, float* out, float* stats);

// From grad (of out) and grad_x_new (of x_new, or null): dx, dy, dgate, dshift, dscale.
void gated_adaln_backward(Layout layout, const float* grad, const float* grad_x_new, const float* x_new,
                          const float* y, const float* stats, Modulation gate, Modulation scale, float* dx,
                          float* dy, float* dgate, float* dshift, float* dscale);

}  // namespace cd
