// Distribution matching losses on CPU, each one sweep over memory. Latents are contiguous elements of type T
// (fp32, bf16, fp16); coefficients, masks, sums and arithmetic are fp32. Sums are added up block by block in
// an order that does not depend on the number of threads.
#pragma once

#include "common/kernel.h"

namespace cd {

// [batch, segments * inner] elements; where there is a mask it is [batch, frames], fp32, and segment s of a
// sample belongs to frame s % frames.
struct Samples {
    int64_t batch, segments, inner, frames;
    const float* mask;
    int64_t size() const { return segments * inner; }
};

// Samples of which every element counts.
struct Whole {
    Samples samples;
    Whole(const Samples& all) : samples(all) {}
};

// Predictions p mean x0 = skip * x_t + out * p, [batch, 2] coefficients (skip, out); null x_t: x0 = p.
template <class T>
struct Denoised {
    const T* x_t;
    const float* coefficients;
};

// result = alpha[b] * x0 + sigma[b] * eps; null alpha: 1.
template <class T>
void renoise(Whole whole, const T* x0, const T* eps, const float* alpha, const float* sigma, float* result);

// direction = m * (x0 of fake - x0 of teacher), the teacher's being uncond + (1 + guidance) * (teacher - uncond)
// unless uncond is null; sums [batch, 3] of m * |x - x0 of teacher|, direction^2 and m.
template <class T>
void vsd(Samples samples, const T* x, const T* teacher, const T* fake, const T* uncond, Denoised<T> where,
         float guidance, T* direction, float* sums);

// result = slope[b] * direction, and 0 wherever the slope is 0.
template <class T>
void vsd_gradient(Whole whole, const T* direction, const float* slope, T* result);

// sums [batch] of m * (target - x0)^2.
template <class T>
void squared_error(Samples samples, const T* p, const T* target, Denoised<T> where, float* sums);

// result = grad[b] times the derivative of that sum w.r.t. p.
template <class T>
void squared_error_gradient(Samples samples, const float* grad, const T* p, const T* target, Denoised<T> where,
                            T* result);

}  // namespace cd
