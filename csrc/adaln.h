// Adaptive LayerNorm, or RMSNorm, on CPU. Every row of x (and y, and the outputs) is `width` consecutive elements, rows follow
// each other. They are fp32, bf16 or fp16: X of the residual stream, Y of the branch that is added to it, O of the result; all
// the same, or X is fp32 and the others are fp32 or one narrow type (kMixes in adaln.cpp). Modulation, statistics and arithmetic
// are fp32. A modulation has one row per group, `stride` floats apart, so that slices of a wider tensor need no copy.
#pragma once

#include "common/kernel.h"

namespace cd {

struct Modulation {
    const float* data;
    int64_t stride;
    const float* row(int64_t group) const { return data + group * stride; }
};

// What is normalised by: the mean and the deviation from it, or (rms) the root mean square alone.
struct Norm {
    float eps;
    bool rms;
    Norm(float eps_, bool rms_ = false) : eps(eps_), rms(rms_) {}
};

// out = norm(x) * (1 + scale) + shift; stats[row] = {mean, 1 / sqrt(variance + eps)}, the mean 0 where rms.
template <class X, class O>
void adaln_forward(Layout layout, const X* x, Modulation shift, Modulation scale, Norm norm, O* out, float* stats);

// From grad (of out): dx, and dshift and dscale, both [groups, width]. What is null is left out; of the sums, both or none.
template <class X, class O>
void adaln_backward(Layout layout, const O* grad, const X* x, const float* stats, Modulation scale, X* dx,
                    float* dshift, float* dscale, bool rms = false);

// x_new = x + gate * y; out and stats as above, of x_new as rounded to X.
template <class X, class Y, class O>
void gated_adaln_forward(Layout layout, const X* x, const Y* y, Modulation gate, Modulation shift,
                         Modulation scale, Norm norm, X* x_new, O* out, float* stats);

// From grad (of out) and grad_x_new (of x_new, or null): dx, dy, dgate, dshift, dscale; as above for what is null. y is read
// for dgate alone.
template <class X, class Y, class O>
void gated_adaln_backward(Layout layout, const O* grad, const X* grad_x_new, const X* x_new, const Y* y,
                          const float* stats, Modulation gate, Modulation scale, X* dx, Y* dy, float* dgate,
                          float* dshift, float* dscale, bool rms = false);

// out = x + gate * y.
template <class X, class Y>
void gated_residual_forward(Layout layout, const X* x, const Y* y, Modulation gate, X* out);

// From grad (of out, which is that of x): dy and dgate, each unless null. y is read for dgate alone.
template <class X, class Y>
void gated_residual_backward(Layout layout, const X* grad, const Y* y, Modulation gate, Y* dy, float* dgate);

}  // namespace cd
