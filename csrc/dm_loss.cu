// Distribution matching: one sweep over the latents, fp32 arithmetic, sums in a fixed order.
#include <initializer_list>

#include "device/dispatch.h"
#include "device/reduce.h"

namespace cd::cuda {
namespace {

constexpr unsigned kThreads = 256;
// Elements of a sample that one block adds up; fixed, so that the order of additions is.
constexpr int64_t kChunk = 16384;

// How predictions of one sample are read, and what of it counts.
class Sample {
  public:
    CD_DEVICE Sample(const Latents& shape, const Reading& reading, int64_t sample)
        : frames_(shape.frames), inner_(shape.inner) {
        if (reading.x_t != nullptr) {
            skip = reading.coefficients[2 * sample];
            out = reading.coefficients[2 * sample + 1];
        }
        if (reading.mask != nullptr) mask_ = reading.mask + sample * shape.frames;
    }
    CD_DEVICE float mask(int64_t i) const { return mask_ == nullptr ? 1.0f : mask_[i / inner_ % frames_]; }

    float skip = 0.0f, out = 1.0f;

  private:
    const float* mask_ = nullptr;
    int64_t frames_, inner_;
};

// Calls visit(i) for the first of each kStep elements that this thread has in chunk blockIdx.x of its sample.
template <int kStep, class Visit>
CD_DEVICE void each(int64_t elements, Visit visit) {
    const int64_t begin = blockIdx.x * kChunk, end = begin + kChunk < elements ? begin + kChunk : elements;
    for (int64_t i = begin + threadIdx.x * kStep; i < end; i += kThreads * kStep) visit(i);
}

template <class T, int kStep>
__global__ void __launch_bounds__(kThreads)
    renoise_kernel(Latents shape, const T* x0, const T* eps, const float* alpha, const float* sigma, float* x_t) {
    const int64_t at = blockIdx.y * shape.elements;
    const float a = alpha == nullptr ? 1.0f : alpha[blockIdx.y], s = sigma[blockIdx.y];
    each<kStep>(shape.elements, [&](int64_t i) {
        float clean[kStep], noise[kStep];
        load(x0 + at + i, clean);
        load(eps + at + i, noise);
#pragma unroll
        for (int j = 0; j < kStep; j++) clean[j] = a * clean[j] + s * noise[j];
        store(x_t + at + i, clean);
    });
}

template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) vsd_kernel(Vsd call) {
    CD_SHARED(float, scratch, 96);
    const int64_t at = blockIdx.y * call.shape.elements;
    const Sample sample(call.shape, call.reading, blockIdx.y);
    float sums[3] = {};
    each<kStep>(call.shape.elements, [&](int64_t i) {
        float student[kStep], teacher[kStep], fake[kStep];
        load(static_cast<const T*>(call.x) + at + i, student);
        load(static_cast<const T*>(call.teacher) + at + i, teacher);
        load(static_cast<const T*>(call.fake) + at + i, fake);
        if (call.uncond != nullptr) {
            float uncond[kStep];
            load(static_cast<const T*>(call.uncond) + at + i, uncond);
#pragma unroll
            for (int j = 0; j < kStep; j++) teacher[j] += call.guidance * (teacher[j] - uncond[j]);
        }
        if (call.reading.x_t != nullptr) {
            float noisy[kStep];
            load(static_cast<const T*>(call.reading.x_t) + at + i, noisy);
#pragma unroll
            for (int j = 0; j < kStep; j++) {
                teacher[j] = sample.skip * noisy[j] + sample.out * teacher[j];
                fake[j] = sample.skip * noisy[j] + sample.out * fake[j];
            }
        }
#pragma unroll
        for (int j = 0; j < kStep; j++) {
            const float m = sample.mask(i + j);
            fake[j] = m * (fake[j] - teacher[j]);
            sums[0] += m * fabsf(student[j] - teacher[j]);
            sums[1] += fake[j] * fake[j];
            sums[2] += m;
        }
        store(static_cast<T*>(call.direction) + at + i, fake);
    });
    block_sum(sums, scratch);
    if (threadIdx.x == 0) {
        float* partial = call.partial + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * 3;
        for (int k = 0; k < 3; k++) partial[k] = sums[k];
    }
}

template <class T, int kStep>
__global__ void __launch_bounds__(kThreads)
    vsd_gradient_kernel(Latents shape, const T* direction, const float* slope, T* dx) {
    const int64_t at = blockIdx.y * shape.elements;
    const float factor = slope[blockIdx.y];
    each<kStep>(shape.elements, [&](int64_t i) {
        float value[kStep];
        load(direction + at + i, value);
        // A slope of zero silences its sample, even one that holds a NaN.
#pragma unroll
        for (int j = 0; j < kStep; j++) value[j] = factor == 0.0f ? 0.0f : factor * value[j];
        store(dx + at + i, value);
    });
}

// target - x0 of the elements from i on.
template <class T, int kStep>
CD_DEVICE void errors(const void* p, const void* target, const void* x_t, const Sample& sample, int64_t at,
                      float (&error)[kStep]) {
    float predicted[kStep];
    load(static_cast<const T*>(p) + at, predicted);
    load(static_cast<const T*>(target) + at, error);
    if (x_t != nullptr) {
        float noisy[kStep];
        load(static_cast<const T*>(x_t) + at, noisy);
#pragma unroll
        for (int j = 0; j < kStep; j++) predicted[j] = sample.skip * noisy[j] + sample.out * predicted[j];
    }
#pragma unroll
    for (int j = 0; j < kStep; j++) error[j] -= predicted[j];
}

template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) squared_error_kernel(SquaredError call) {
    CD_SHARED(float, scratch, 32);
    const int64_t at = blockIdx.y * call.shape.elements;
    const Sample sample(call.shape, call.reading, blockIdx.y);
    float sum[1] = {0.0f};
    each<kStep>(call.shape.elements, [&](int64_t i) {
        float error[kStep];
        errors<T>(call.p, call.target, call.reading.x_t, sample, at + i, error);
#pragma unroll
        for (int j = 0; j < kStep; j++) sum[0] += sample.mask(i + j) * error[j] * error[j];
    });
    block_sum(sum, scratch);
    if (threadIdx.x == 0) call.partial[static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = sum[0];
}

template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) squared_error_gradient_kernel(SquaredErrorGradient call) {
    const int64_t at = blockIdx.y * call.shape.elements;
    const Sample sample(call.shape, call.reading, blockIdx.y);
    const float factor = -2.0f * call.grad[blockIdx.y] * sample.out;
    each<kStep>(call.shape.elements, [&](int64_t i) {
        float error[kStep];
        errors<T>(call.p, call.target, call.reading.x_t, sample, at + i, error);
#pragma unroll
        for (int j = 0; j < kStep; j++) error[j] *= factor * sample.mask(i + j);
        store(static_cast<T*>(call.dp) + at + i, error);
    });
}

dim3 grid(const Latents& shape) {
    return dim3(static_cast<unsigned>(latent_chunks(shape)), static_cast<unsigned>(shape.batch));
}

}  // namespace

int64_t latent_chunks(const Latents& shape) { return (shape.elements + kChunk - 1) / kChunk; }

void renoise(Dtype dtype, const Latents& shape, const void* x0, const void* eps, const float* alpha,
             const float* sigma, float* x_t, Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width<T>(shape.elements, {place(x0), place(eps), place(x_t)}, [&](auto step) {
            launch("renoise", &renoise_kernel<T, decltype(step)::kValue>, grid(shape), kThreads, 0, stream, shape,
                   static_cast<const T*>(x0), static_cast<const T*>(eps), alpha, sigma, x_t);
        });
    });
}

void vsd(Dtype dtype, const Vsd& call, Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width<T>(call.shape.elements,
                      {place(call.x), place(call.teacher), place(call.fake), place(call.uncond),
                       place(call.reading.x_t), place(call.direction)},
                      [&](auto step) {
                          launch("vsd", &vsd_kernel<T, decltype(step)::kValue>, grid(call.shape), kThreads, 0,
                                 stream, call);
                      });
    });
    sum_chunks(call.partial, call.shape.batch, latent_chunks(call.shape), 3, 1, Sums{{call.sums}}, stream);
}

void vsd_gradient(Dtype dtype, const Latents& shape, const void* direction, const float* slope, void* dx,
                  Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width<T>(shape.elements, {place(direction), place(dx)}, [&](auto step) {
            launch("vsd_gradient", &vsd_gradient_kernel<T, decltype(step)::kValue>, grid(shape), kThreads, 0, stream,
                   shape, static_cast<const T*>(direction), slope, static_cast<T*>(dx));
        });
    });
}

void squared_error(Dtype dtype, const SquaredError& call, Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width<T>(call.shape.elements, {place(call.p), place(call.target), place(call.reading.x_t)},
                      [&](auto step) {
                          launch("squared_error", &squared_error_kernel<T, decltype(step)::kValue>,
                                 grid(call.shape), kThreads, 0, stream, call);
                      });
    });
    sum_chunks(call.partial, call.shape.batch, latent_chunks(call.shape), 1, 1, Sums{{call.sums}}, stream);
}

void squared_error_gradient(Dtype dtype, const SquaredErrorGradient& call, Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width<T>(call.shape.elements,
                      {place(call.p), place(call.target), place(call.reading.x_t), place(call.dp)},
                      [&](auto step) {
                          launch("squared_error_gradient",
                                 &squared_error_gradient_kernel<T, decltype(step)::kValue>, grid(call.shape),
                                 kThreads, 0, stream, call);
                      });
    });
}

}  // namespace cd::cuda
