// The operators on CUDA devices. Addresses are of device memory on the current device; work is queued on
// `stream` and not waited for. Latents, tokens and heads are of the dtype given; everything typed float is fp32.
// All functions throw std::runtime_error when a kernel cannot be launched, and std::invalid_argument for a dtype or
// sizes that they do not serve.
#pragma once

#include <cstdint>

namespace cd::cuda {

using Stream = void*;

enum class Dtype : int { fp32 = 0, bf16 = 1, fp16 = 2 };

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

// Null data: no rotation. With frames, the tables are factored over a grid of frames x height x width tokens, as
// in qk_norm_rope.h; without, they are [1 or batch, length, head_dim].
struct Tables {
    const float *cos, *sin;
    bool per_sample;
    int frames, height, width, t, h, w;
};

// One of q and k: batch * length tokens of `heads` dense heads, `stride` elements apart; the other tensors are
// dense. rstd is [tokens, heads]. partial is scratch of [norm_rope_chunks, head_dim].
struct HeadsForward {
    int64_t tokens, heads, stride;
    const void* x;
    const float* weight;
    void* out;
    float* rstd;
};
struct HeadsBackward {
    int64_t tokens, heads, stride;
    const void *grad, *x;
    const float *weight, *rstd;
    void* dx;
    float *dweight, *partial;
};

// forward or backward is filled in, for q and k.
struct NormRope {
    int64_t length, head_dim;
    Tables tables;
    float eps;
    HeadsForward forward[2];
    HeadsBackward backward[2];
};
void norm_rope_forward(Dtype dtype, const NormRope& call, Stream stream);
void norm_rope_backward(Dtype dtype, const NormRope& call, Stream stream);

// Chunks of tokens that are added up on their own, for the longer of q and k.
int64_t norm_rope_chunks(int64_t tokens);

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

// [batch, rows, heads, dim] with a dense last axis; distances in elements. Data and rows are aligned to 16 bytes.
struct Strided {
    void* data = nullptr;
    int64_t batch = 0, row = 0, head = 0;
};

// q, out, grad and dq have `queries` rows, the others `keys`, and neither is 0; dim is a multiple of 8 up to 128; fp32
// is not served. lse and grad_lse (may be null) are [batch, heads, queries]. What only the other direction needs is
// left out. scratch is [batch, heads, attention_padded, 2], aligned to 16 bytes.
struct Attention {
    int batch, heads, queries, keys, dim;
    float scale;
    Strided q, k, v, out;
    float* lse = nullptr;
    Strided grad, dq, dk, dv;
    const float* grad_lse = nullptr;
    float* scratch = nullptr;
};
void attention_forward(Dtype dtype, const Attention& call, Stream stream);
void attention_backward(Dtype dtype, const Attention& call, Stream stream);

// Rows of the scratch for so many queries.
int attention_padded(int queries);

}  // namespace cd::cuda
