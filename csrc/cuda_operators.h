// The operators on CUDA devices. Addresses are of device memory on the current device; work is queued on
// `stream` and not waited for. Latents, tokens and heads are of the dtype given; everything typed float is fp32.
// All functions throw std::runtime_error when a kernel cannot be launched.
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

// Latents [batch, elements]; where there is a mask, [batch, channels, frames, inner].
struct Latents {
    int64_t batch, elements, frames, inner;
};

// Predictions p mean x0 = skip x_t + out p with coefficients [batch, 2], or x0 itself where x_t is null. The
// mask is [batch, frames] or null.
struct Reading {
    const void* x_t;
    const float *coefficients, *mask;
};

// x_t = alpha x0 + sigma eps, fp32; alpha may be null.
void renoise(Dtype dtype, const Latents& shape, const void* x0, const void* eps, const float* alpha,
             const float* sigma, float* x_t, Stream stream);

// Chunks of a sample that are added up on their own.
int64_t latent_chunks(const Latents& shape);

// direction = m (x0_fake - x0_teacher), with the teacher guided where uncond is not null; sums [batch, 3] of
// m |x - x0_teacher|, direction^2 and m. partial is scratch of [batch, latent_chunks, 3].
struct Vsd {
    Latents shape;
    const void *x, *teacher, *fake, *uncond;
    float guidance;
    Reading reading;
    void* direction;
    float *sums, *partial;
};
void vsd(Dtype dtype, const Vsd& call, Stream stream);

// dx = slope[sample] * direction, and 0 where the slope is 0.
void vsd_gradient(Dtype dtype, const Latents& shape, const void* direction, const float* slope, void* dx,
                  Stream stream);

// sums [batch] of m (target - x0)^2; partial is scratch of [batch, latent_chunks].
struct SquaredError {
    Latents shape;
    const void *p, *target;
    Reading reading;
    float *sums, *partial;
};
void squared_error(Dtype dtype, const SquaredError& call, Stream stream);

// dp = grad[sample] times the derivative of that with respect to p.
struct SquaredErrorGradient {
    Latents shape;
    const float* grad;
    const void *p, *target;
    Reading reading;
    void* dp;
};
void squared_error_gradient(Dtype dtype, const SquaredErrorGradient& call, Stream stream);

// [batch, length, heads, dim] with dense heads and `stride` elements between tokens; results are dense.
struct Heads {
    int64_t batch, length, heads, dim, stride;
};

// Cosines and sines [batch or 1, length, dim], or null: no rotation. With frames > 0 factored over a grid of
// frames x height x width tokens: [frames, t], [height, h] and [width, w] one after the other, for half a head.
struct Rotary {
    const float *cos, *sin;
    bool per_sample;
    int64_t frames, height, width, t, h, w;
};

// out = rope(x * rstd * weight); rstd [batch, length, heads] = 1 / sqrt(mean(x^2) + eps).
struct NormRopeForward {
    Heads shape;
    const void* x;
    const float* weight;
    Rotary rotary;
    float eps;
    void* out;
    float* rstd;
};
void norm_rope_forward(Dtype dtype, const NormRopeForward& call, Stream stream);

// Chunks of tokens whose share of dweight is added up on its own.
int64_t norm_rope_chunks(const Heads& shape);

// From grad (dense): dx (dense) and dweight [dim]; partial is scratch of [norm_rope_chunks, dim].
struct NormRopeBackward {
    Heads shape;
    const void *grad, *x;
    const float *rstd, *weight;
    Rotary rotary;
    void* dx;
    float *dweight, *partial;
};
void norm_rope_backward(Dtype dtype, const NormRopeBackward& call, Stream stream);

}  // namespace cd::cuda
