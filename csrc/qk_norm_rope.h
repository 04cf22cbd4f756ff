// Per-head RMSNorm and rotary embedding on CPU: heads of fp32, bf16 or fp16, everything else fp32.
#pragma once

#include "common/kernel.h"

namespace cd {

// [batch, length, heads, head_dim] with heads and channels dense and `stride` elements between tokens (so
// that a slice of a fused projection needs no copy). Outputs and gradients are always dense.
struct Heads {
    int64_t batch, length, heads, head_dim, stride;
    int64_t tokens() const { return batch * length; }
    int64_t token() const { return heads * head_dim; }
};

// Cosines and sines; null data: no rotation. Full: [batch or 1, length, head_dim]. Factored over a grid of
// frames x height x width tokens: per sample (or once for all) the tables [frames, t], [height, h] and
// [width, w] one after the other, with t + h + w = head_dim / 2 angles for the channels of a pair. Those are half a head
// apart or, interleaved, neighbours.
struct Tables {
    const float* cos;
    const float* sin;
    bool per_sample;
    int64_t frames, height, width, t, h, w;
    bool interleaved = false;
    bool turns_neighbours() const { return interleaved && cos != nullptr; }
    bool factored() const { return frames != 0; }
    int64_t length() const { return frames * t + height * h + width * w; }
};

// out = rope(x * rstd * weight); rstd[token, head] = 1 / sqrt(mean(x^2) + eps).
template <class T>
void norm_rope_forward(Heads shape, const T* x, const float* weight, Tables tables, float eps, T* out,
                       float* rstd);

// From grad (of out, dense): dx (dense) and dweight [head_dim], each unless null.
template <class T>
void norm_rope_backward(Heads shape, const T* grad, const T* x, const float* rstd, const float* weight,
                        Tables tables, T* dx, float* dweight);

}  // namespace cd
