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

// The types in memory of X, the residual stream, Y, the branch that is added to it, and O, the result: the numbers of the three
// (Dtype), times 1, 4 and 16. Without a branch, Y is O.
enum class Elements : int {};
constexpr Elements elements(Dtype x, Dtype y, Dtype o) {
    return static_cast<Elements>(static_cast<int>(x) + 4 * static_cast<int>(y) + 16 * static_cast<int>(o));
}

// out = norm(x) * (1 + scale) + shift, of LayerNorm or (rms) of RMSNorm. With a gate, x_new = x + gate * y, rounded, takes the
// place of x. stats[row] = {mean, 1 / sqrt(variance + eps)}, the mean 0 where rms.
struct AdalnForward {
    Rows shape;
    const void *x, *y;
    Modulation gate, shift, scale;
    float eps;
    void *x_new, *out;
    float* stats;
    bool rms;
};
void adaln_forward(Elements elements, const AdalnForward& call, Stream stream);

// Chunks of rows of a group that are added up on their own.
int64_t adaln_chunks(int64_t groups, int64_t rows);

// With a gate, x is x_new, and dy and dgate are wanted too; grad_x_new may be null. Modulation's gradients are
// [groups, width]; partial is scratch of [groups, adaln_chunks, 2 (with dgate: 3) * width]. What is null of dx, dy, dgate, and
// of dshift with dscale, is left out; dgate comes with these two, and y is read for it alone.
struct AdalnBackward {
    Rows shape;
    const void *grad, *grad_x_new, *x, *y;
    const float* stats;
    Modulation gate, scale;
    void *dx, *dy;
    float *dgate, *dshift, *dscale, *partial;
    bool rms;
};
void adaln_backward(Elements elements, const AdalnBackward& call, Stream stream);

// out = x + gate * y, of X and Y.
struct ResidualForward {
    Rows shape;
    const void *x, *y;
    Modulation gate;
    void* out;
};
void gated_residual_forward(Elements elements, const ResidualForward& call, Stream stream);

// From grad (of out, and so of x): dy and dgate, each unless null; with dgate, partial is scratch of [groups, adaln_chunks,
// width].
struct ResidualBackward {
    Rows shape;
    const void *grad, *y;
    Modulation gate;
    void* dy;
    float *dgate, *partial;
};
void gated_residual_backward(Elements elements, const ResidualBackward& call, Stream stream);

}  // namespace cd::cuda
