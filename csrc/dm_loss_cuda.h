// Distribution matching losses on CUDA devices. Addresses are of device memory on the current device; work is queued on `stream` and not
// waited for. Throws std::runtime_error when a kernel cannot be launched, and std::invalid_argument for a dtype or sizes
// that are not served.
#pragma once

#include "device/call.h"

namespace cd::cuda {

// Null data: every element counts. Else [batch, frames]; a frame is `area` elements of each channel.
struct FrameMask {
    const float* data;
    int64_t frames, area;
};

// out = alpha x0 + sigma eps, fp32; null alpha: 1.
struct Renoise {
    int64_t batch, elements;
    const void *x0, *eps;
    const float *alpha, *sigma;
    float* out;
};
void renoise(Dtype dtype, const Renoise& call, Stream stream);

// Blocks that share the elements of one sample.
int64_t dm_loss_blocks(int64_t elements);

// uncond may be null, and x_t, with coefficients. sums [batch, 3] and partial [batch, dm_loss_blocks, 3] as in
// ops/dm_loss/fused.py.
struct Vsd {
    int64_t batch, elements;
    const void *x, *teacher, *fake, *uncond, *x_t;
    float guidance;
    const float* coefficients;
    FrameMask mask;
    void* direction;
    float *sums, *partial;
};
void vsd(Dtype dtype, const Vsd& call, Stream stream);

void vsd_gradient(Dtype dtype, int64_t batch, int64_t elements, const void* direction, const float* slope, void* out,
                  Stream stream);

// With grad [batch], the gradient dp; else sums [batch], through partial [batch, dm_loss_blocks].
struct SquaredError {
    int64_t batch, elements;
    const void *p, *target, *x_t;
    const float* coefficients;
    FrameMask mask;
    const float* grad;
    void* dp;
    float *sums, *partial;
};
void squared_error(Dtype dtype, const SquaredError& call, Stream stream);

}  // namespace cd::cuda
