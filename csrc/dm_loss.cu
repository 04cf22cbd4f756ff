// Distribution matching in one sweep over the latents. Memory-bound: every tensor is read once.
#include <initializer_list>

#include "common/operator.h"
#include "device/dispatch.h"
#include "device/reduce.h"
#include "dm_loss_cuda.h"

namespace cd::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kElementsPerBlock = 16 * 1024;

// A block's part of a sample: the elements from `at` up to `end` that this thread comes to, with `at` counted within
// the sample. All blocks lie on the grid's first axis, those of a sample next to each other: the others end at
// 65,535, fewer than a batch may have samples.
template <int kStep>
struct Part {
    int64_t at, end, sample, base;
    CD_DEVICE explicit Part(int64_t elements) {
        const auto parts = static_cast<unsigned>((elements + kElementsPerBlock - 1) / kElementsPerBlock);
        const int64_t begin = blockIdx.x % parts * kElementsPerBlock;
        sample = blockIdx.x / parts;
        base = sample * elements;
        at = begin + threadIdx.x * kStep;
        end = begin + kElementsPerBlock < elements ? begin + kElementsPerBlock : elements;
    }
    CD_DEVICE bool more() const { return at < end; }
    CD_DEVICE void next() { at += kThreads * kStep; }
    CD_DEVICE int64_t here() const { return base + at; }
};

// m of consecutive elements of one sample.
template <int kStep>
CD_DEVICE void load_mask(const FrameMask& mask, int64_t sample, int64_t at, float (&to)[kStep]) {
    if (mask.data == nullptr) {
#pragma unroll
        for (int j = 0; j < kStep; j++) to[j] = 1.0f;
        return;
    }
    const float* const frames = mask.data + sample * mask.frames;
    const unsigned area = static_cast<unsigned>(mask.area), count = static_cast<unsigned>(mask.frames);
    const unsigned position = static_cast<unsigned>(at);
    unsigned frame = position / area % count, within = position % area;
#pragma unroll
    for (int j = 0; j < kStep; j++) {
        to[j] = frames[frame];
        if (++within == area) {
            within = 0;
            if (++frame == count) frame = 0;
        }
    }
}

// x0 = c_skip x_t + c_out p, or p itself.
template <class T, int kStep>
struct Denoised {
    const T* x_t;
    float skip, out;
    CD_DEVICE Denoised(const void* x_t, const float* coefficients, int64_t sample) : x_t(static_cast<const T*>(x_t)) {
        skip = x_t == nullptr ? 0.0f : coefficients[2 * sample];
        out = x_t == nullptr ? 1.0f : coefficients[2 * sample + 1];
    }
    CD_DEVICE void load_noisy(int64_t here, float (&noisy)[kStep]) const {
        if (x_t != nullptr) load(x_t + here, noisy);
    }
    CD_DEVICE float operator()(float p, float noisy) const { return x_t == nullptr ? p : skip * noisy + out * p; }
};

template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) renoise_kernel(Renoise call) {
    Part<kStep> part(call.elements);
    const float sigma = call.sigma[part.sample], alpha = call.alpha == nullptr ? 1.0f : call.alpha[part.sample];
    for (; part.more(); part.next()) {
        float x[kStep], noise[kStep];
        load(static_cast<const T*>(call.x0) + part.here(), x);
        load(static_cast<const T*>(call.eps) + part.here(), noise);
#pragma unroll
        for (int j = 0; j < kStep; j++) x[j] = alpha * x[j] + sigma * noise[j];
        store(call.out + part.here(), x);
    }
}

template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) vsd_kernel(Vsd call) {
    CD_SHARED(float, scratch, 96);
    Part<kStep> part(call.elements);
    const Denoised<T, kStep> denoised(call.x_t, call.coefficients, part.sample);
    const T* const uncond = static_cast<const T*>(call.uncond);
    float sums[3] = {0.0f, 0.0f, 0.0f};
    for (; part.more(); part.next()) {
        float x[kStep], teacher[kStep], fake[kStep], mask[kStep], noisy[kStep] = {};
        load(static_cast<const T*>(call.x) + part.here(), x);
        load(static_cast<const T*>(call.teacher) + part.here(), teacher);
        load(static_cast<const T*>(call.fake) + part.here(), fake);
        if (uncond != nullptr) {
            float without[kStep];
            load(uncond + part.here(), without);
#pragma unroll
            for (int j = 0; j < kStep; j++) teacher[j] += call.guidance * (teacher[j] - without[j]);
        }
        denoised.load_noisy(part.here(), noisy);
        load_mask(call.mask, part.sample, part.at, mask);
#pragma unroll
        for (int j = 0; j < kStep; j++) {
            // Of the difference between two predictions x_t cancels: it is needed for the distance only.
            const float direction = mask[j] * denoised.out * (fake[j] - teacher[j]);
            sums[0] += mask[j] * fabsf(x[j] - denoised(teacher[j], noisy[j]));
            sums[1] += direction * direction;
            sums[2] += mask[j];
            fake[j] = direction;
        }
        store(static_cast<T*>(call.direction) + part.here(), fake);
    }
    block_sum(sums, scratch);
    if (threadIdx.x < 3) {
        const float sum = threadIdx.x == 0 ? sums[0] : threadIdx.x == 1 ? sums[1] : sums[2];
        call.partial[int64_t{blockIdx.x} * 3 + threadIdx.x] = sum;
    }
}

template <class T, int kStep>
__global__ void __launch_bounds__(kThreads)
    vsd_gradient_kernel(int64_t elements, const T* CD_RESTRICT direction, const float* slopes, T* CD_RESTRICT out) {
    Part<kStep> part(elements);
    const float slope = slopes[part.sample];
    for (; part.more(); part.next()) {
        float value[kStep];
        load(direction + part.here(), value);
        // A slope of zero silences its sample, even one that holds a NaN.
#pragma unroll
        for (int j = 0; j < kStep; j++) value[j] = slope == 0.0f ? 0.0f : slope * value[j];
        store(out + part.here(), value);
    }
}

template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) squared_error_kernel(SquaredError call) {
    CD_SHARED(float, scratch, 32);
    Part<kStep> part(call.elements);
    const Denoised<T, kStep> denoised(call.x_t, call.coefficients, part.sample);
    const bool gradient = call.grad != nullptr;
    const float slope = gradient ? -2.0f * call.grad[part.sample] * denoised.out : 0.0f;
    float sum[1] = {0.0f};
    for (; part.more(); part.next()) {
        float p[kStep], target[kStep], mask[kStep], noisy[kStep] = {};
        load(static_cast<const T*>(call.p) + part.here(), p);
        load(static_cast<const T*>(call.target) + part.here(), target);
        denoised.load_noisy(part.here(), noisy);
        load_mask(call.mask, part.sample, part.at, mask);
#pragma unroll
        for (int j = 0; j < kStep; j++) {
            const float error = target[j] - denoised(p[j], noisy[j]);
            sum[0] += mask[j] * error * error;
            p[j] = slope * mask[j] * error;
        }
        if (gradient) store(static_cast<T*>(call.dp) + part.here(), p);
    }
    if (gradient) return;
    block_sum(sum, scratch);
    if (threadIdx.x == 0) call.partial[blockIdx.x] = sum[0];
}

dim3 grid(int64_t batch, int64_t elements) {
    return dim3(static_cast<unsigned>(batch * dm_loss_blocks(elements)));
}

}  // namespace

int64_t dm_loss_blocks(int64_t elements) { return (elements + kElementsPerBlock - 1) / kElementsPerBlock; }

void renoise(Dtype dtype, const Renoise& call, Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width<T>(call.elements, {place(call.x0), place(call.eps), place(call.out)}, [&](auto step) {
            launch<&renoise_kernel<T, decltype(step)::kValue>>("renoise", grid(call.batch, call.elements), kThreads, 0,
                   stream, call);
        });
    });
}

void vsd(Dtype dtype, const Vsd& call, Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width<T>(call.elements,
                      {place(call.x), place(call.teacher), place(call.fake), place(call.uncond), place(call.x_t),
                       place(call.direction)},
                      [&](auto step) {
                          launch<&vsd_kernel<T, decltype(step)::kValue>>("vsd", grid(call.batch, call.elements),
                                 kThreads, 0, stream, call);
                      });
    });
    sum_chunks(call.partial, call.batch, dm_loss_blocks(call.elements), 3, 1, {{call.sums, nullptr, nullptr}}, stream);
}

void vsd_gradient(Dtype dtype, int64_t batch, int64_t elements, const void* direction, const float* slope, void* out,
                  Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width<T>(elements, {place(direction), place(out)}, [&](auto step) {
            launch<&vsd_gradient_kernel<T, decltype(step)::kValue>>("vsd_gradient", grid(batch, elements), kThreads, 0,
                   stream, elements, static_cast<const T*>(direction), slope, static_cast<T*>(out));
        });
    });
}

void squared_error(Dtype dtype, const SquaredError& call, Stream stream) {
    const bool gradient = call.grad != nullptr;
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_width<T>(call.elements, {place(call.p), place(call.target), place(call.x_t), place(call.dp)}, [&](auto step) {
            launch<&squared_error_kernel<T, decltype(step)::kValue>>(
                gradient ? "squared_error_gradient" : "squared_error", grid(call.batch, call.elements), kThreads, 0,
                stream, call);
        });
    });
    if (!gradient)
        sum_chunks(call.partial, call.batch, dm_loss_blocks(call.elements), 1, 1, {{call.sums, nullptr, nullptr}},
                   stream);
}

}  // namespace cd::cuda

namespace cd {

template <>
struct Read<cuda::FrameMask> : ReadMembers<cuda::FrameMask, const float*, int64_t, int64_t> {};
template <>
struct Read<cuda::Renoise>
    : ReadMembers<cuda::Renoise, int64_t, int64_t, const void*, const void*, const float*, const float*, float*> {};
template <>
struct Read<cuda::Vsd>
    : ReadMembers<cuda::Vsd, int64_t, int64_t, const void*, const void*, const void*, const void*, const void*, float,
                  const float*, cuda::FrameMask, void*, float*, float*> {};
template <>
struct Read<cuda::SquaredError>
    : ReadMembers<cuda::SquaredError, int64_t, int64_t, const void*, const void*, const void*, const float*,
                  cuda::FrameMask, const float*, void*, float*, float*> {};

CD_CUDA_FUNCTION(dm_loss_blocks, cuda::dm_loss_blocks)
CD_CUDA_FUNCTION(renoise, cuda::renoise)
CD_CUDA_FUNCTION(vsd, cuda::vsd)
CD_CUDA_FUNCTION(vsd_gradient, cuda::vsd_gradient)
CD_CUDA_FUNCTION(squared_error, cuda::squared_error)

}  // namespace cd
