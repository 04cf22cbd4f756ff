// Adaptive LayerNorm on CPU. Every row of x (and y, and the outputs) is `width` consecutive elements of
// type T (fp32, bf16, fp16), rows follow each other; modulation, statistics and arithmetic are fp32. A
// modulation has one row per group, `stride` floats apart, so that slices of a wider tensor need no copy.
#pragma once

#include "common/kernel.h"

namespace cd {

struct Modulation {
    const float* data;
    int64_t stride;
    const float* row(int64_t group) const { return data + group * stride; }
};

// out = layer_norm(x) * (1 + scale) + shift; stats[row] = {mean, 1 / sqrt(variance + eps)}.
template <class T>
void adaln_forward(Layout layout, const T* x, Modulation shift, Modulation scale, float eps, T* out, float* stats);

// From grad (of out): dx, and dshift and dscale, both [groups, width].
template <class T>
void adaln_backward(Layout layout, const T* grad, const T* x, const float* stats, Modulation scale, T* dx,
                    float* dshift, float* dscale);

// x_new = x + gate * y; out and stats as above, of x_new as rounded to T.
template <class T>
void gated_adaln_forward(Layout layout, const T* x, const T* y, Modulation gate, Modulation shift,
                         Modulation scale, float eps, T* x_new, T* out, float* stats);

// From grad (of out) and grad_x_new (of x_new, or null): dx, dy, dgate, dshift, dscale.
template <class T>
void gated_adaln_backward(Layout layout, const T* grad, const T* grad_x_new, const T* x_new, const T* y,
                          const float* stats, Modulation gate, Modulation scale, T* dx, T* dy, float* dgate,
                          float* dshift, float* dscale);

}  // namespace cd
