// Adaptive LayerNorm on CUDA devices. Addresses are of device memory on the current device; work is queued on `stream` and not
// waited for. Throws std::runtime_error when a kernel cannot be launched, and std::invalid_argument for a dtype or sizes
// that are not served.
#pragma once

#include "device/call.h"

namespace cd::cuda {

// Rows of `width` elements one after the other: group g owns rows g * rows .. (g + 1) * rows - 1.
struct Rows {
    int64_t groups, rows, width;
};

// One row per group, `stride` floats apart.
struct Modulation {
    const float* data;
    int64_t stride;
};

// out = layer_norm(x) * (1 + scale) + shift. With a gate, x_new = x + gate * y, rounded, takes the place of x.
// stats[row] = {mean, 1 / sqrt(variance + eps)}.
struct AdalnForward {
    Rows shape;
    const void *x, *y;
    Modulation gate, shift, scale;
    float eps;
    void *x_new, *out;
    float* stats;
};
void adaln_forward(Dtype dtype, const AdalnForward& call, Stream stream);

// Chunks of rows of a group that are added up on their own.
int64_t adaln_chunks(int64_t groups, int64_t rows);

// With a gate, x is x_new, and dy and dgate are wanted too; grad_x_new may be null. Modulation's gradients are
// [groups, width]; partial is scratch of [groups, adaln_chunks, 2 (with a gate: 3) * width].
struct AdalnBackward {
    Rows shape;
    const void *grad, *grad_x_new, *x, *y;
    const float* stats;
    Modulation gate, scale;
    void *dx, *dy;
    float *dgate, *dshift, *dscale, *partial;
};
void adaln_backward(Dtype dtype, const AdalnBackward& call, Stream stream);

}  // namespace cd::cuda
