// Adaptive LayerNorm, alone or after the gated residual. Memory-bound: every tensor is read from memory once.
#include <initializer_list>

#include "adaln_cuda.h"
#include "common/operator.h"
#include "device/dispatch.h"
#include "device/reduce.h"

namespace cd::cuda {
namespace {

constexpr size_t kMaxShared = 96 * 1024;  // a row or its sums wider than this are kept in global memory

// One block per row, kept in shared memory while its mean and variance are found. A thread comes back to
// the columns it has written, so only the sums need barriers.
template <class T, int kStep, bool kGated>
__global__ void __launch_bounds__(256) adaln_forward_kernel(AdalnForward call, bool keep) {
    CD_DYNAMIC_SHARED(T, kept);
    CD_SHARED(float, scratch, 64);
    const int64_t row = blockIdx.x, width = call.shape.width;
    const int64_t group = blockIdx.x / static_cast<unsigned>(call.shape.rows);
    const T* CD_RESTRICT x = static_cast<const T*>(call.x) + row * width;
    T* x_new = static_cast<T*>(call.x_new) + row * width;
    T* CD_RESTRICT out = static_cast<T*>(call.out) + row * width;
    const float* CD_RESTRICT shift = call.shift.data + group * call.shift.stride;
    const float* CD_RESTRICT scale = call.scale.data + group * call.scale.stride;
    const int64_t first = threadIdx.x * kStep, step = blockDim.x * kStep;

    float sum[1] = {0.0f};
    for (int64_t i = first; i < width; i += step) {
        float value[kStep];
        load(x + i, value);
        if (kGated) {
            float y[kStep], gate[kStep];
            load(static_cast<const T*>(call.y) + row * width + i, y);
            load(call.gate.data + group * call.gate.stride + i, gate);
#pragma unroll
            for (int j = 0; j < kStep; j++) value[j] = widen(narrow<T>(value[j] + gate[j] * y[j]));
            store(x_new + i, value);
        }
        if (keep) store(kept + i, value);
#pragma unroll
        for (int j = 0; j < kStep; j++) sum[0] += value[j];
    }
    const auto again = [&](int64_t i, float(&value)[kStep]) {
        if (keep)
            load(kept + i, value);
        else
            load(kGated ? x_new + i : x + i, value);
    };
    block_sum(sum, scratch);
    const float mean = sum[0] / static_cast<float>(width);

    // In a second sweep: E[x^2] - E[x]^2 cancels when |mean| is large.
    float square[1] = {0.0f};
    for (int64_t i = first; i < width; i += step) {
        float value[kStep];
        again(i, value);
#pragma unroll
        for (int j = 0; j < kStep; j++) square[0] += (value[j] - mean) * (value[j] - mean);
    }
    block_sum(square, scratch + 32);
    const float rstd = 1.0f / sqrtf(square[0] / static_cast<float>(width) + call.eps);
    if (threadIdx.x == 0) {
        call.stats[2 * row] = mean;
        call.stats[2 * row + 1] = rstd;
    }
    for (int64_t i = first; i < width; i += step) {
        float value[kStep], add[kStep], times[kStep];
        again(i, value);
        load(shift + i, add);
        load(scale + i, times);
#pragma unroll
        for (int j = 0; j < kStep; j++) value[j] = (value[j] - mean) * rstd * (1.0f + times[j]) + add[j];
        store(out + i, value);
    }
}

// One block per chunk of a group's rows. With n = grad * (1 + scale):
// dx = rstd * (n - mean(n) - xhat * mean(n * xhat)) (+ grad_x_new), dshift = sum grad, dscale = sum grad * xhat,
// dy = dx * gate, dgate = sum dx * y. Each thread keeps the sums of its own columns.
template <class T, int kStep, bool kGated>
__global__ void __launch_bounds__(256)
    adaln_backward_kernel(AdalnBackward call, unsigned chunks, int64_t chunk_rows, bool keep) {
    constexpr int kSums = kGated ? 3 : 2;
    CD_DYNAMIC_SHARED(float, kept);
    CD_SHARED(float, scratch, 128);
    const int64_t group = blockIdx.x / chunks, chunk = blockIdx.x % chunks, width = call.shape.width;
    const float* CD_RESTRICT scale = call.scale.data + group * call.scale.stride;
    const float* CD_RESTRICT gate = kGated ? call.gate.data + group * call.gate.stride : nullptr;
    float* const partial = call.partial + static_cast<int64_t>(blockIdx.x) * kSums * width;
    float* const sums = keep ? kept : partial;
    const int64_t first = threadIdx.x * kStep, step = blockDim.x * kStep;
    for (int64_t i = first; i < width; i += step) {
        const float zero[kStep] = {};
#pragma unroll
        for (int k = 0; k < kSums; k++) store(sums + k * width + i, zero);
    }
    const auto add = [&](int64_t at, const float(&value)[kStep]) {
        float sum[kStep];
        load(sums + at, sum);
#pragma unroll
        for (int j = 0; j < kStep; j++) sum[j] += value[j];
        store(sums + at, sum);
    };
    const int64_t begin = chunk * chunk_rows;
    const int64_t end = begin + chunk_rows < call.shape.rows ? begin + chunk_rows : call.shape.rows;
    for (int64_t r = begin; r < end; r++) {
        const int64_t row = group * call.shape.rows + r;
        const T* CD_RESTRICT grad = static_cast<const T*>(call.grad) + row * width;
        const T* CD_RESTRICT x = static_cast<const T*>(call.x) + row * width;
        const float mean = call.stats[2 * row], rstd = call.stats[2 * row + 1];
        float means[2] = {0.0f, 0.0f};
        for (int64_t i = first; i < width; i += step) {
            float g[kStep], hat[kStep], times[kStep];
            load(grad + i, g);
            load(x + i, hat);
            load(scale + i, times);
            add(i, g);
#pragma unroll
            for (int j = 0; j < kStep; j++) {
                hat[j] = (hat[j] - mean) * rstd;
                const float n = g[j] * (1.0f + times[j]);
                means[0] += n;
                means[1] += n * hat[j];
                g[j] *= hat[j];
            }
            add(width + i, g);
        }
        block_sum(means, scratch + 64 * (r % 2));
        means[0] /= static_cast<float>(width);
        means[1] /= static_cast<float>(width);
        for (int64_t i = first; i < width; i += step) {
            float g[kStep], hat[kStep], times[kStep];
            load(grad + i, g);
            load(x + i, hat);
            load(scale + i, times);
            if (kGated && call.grad_x_new != nullptr) {
                float direct[kStep];
                load(static_cast<const T*>(call.grad_x_new) + row * width + i, direct);
#pragma unroll
                for (int j = 0; j < kStep; j++)
                    g[j] = direct[j] + rstd * (g[j] * (1.0f + times[j]) - means[0] - (hat[j] - mean) * rstd * means[1]);
            } else {
#pragma unroll
                for (int j = 0; j < kStep; j++)
                    g[j] = rstd * (g[j] * (1.0f + times[j]) - means[0] - (hat[j] - mean) * rstd * means[1]);
            }
            store(static_cast<T*>(call.dx) + row * width + i, g);
            if (kGated) {
                float y[kStep], through[kStep], dy[kStep];
                load(static_cast<const T*>(call.y) + row * width + i, y);
                load(gate + i, through);
#pragma unroll
                for (int j = 0; j < kStep; j++) {
                    dy[j] = g[j] * through[j];
                    y[j] *= g[j];
                }
                store(static_cast<T*>(call.dy) + row * width + i, dy);
                add(2 * width + i, y);
            }
        }
    }
    if (!keep) return;
    for (int64_t i = first; i < width; i += step) {
#pragma unroll
        for (int k = 0; k < kSums; k++) {
            float sum[kStep];
            load(sums + k * width + i, sum);
            store(partial + k * width + i, sum);
        }
    }
}

uintptr_t bytes(const Modulation& modulation) { return modulation.stride * sizeof(float); }

}  // namespace

void adaln_forward(Dtype dtype, const AdalnForward& call, Stream stream) {
    const int64_t width = call.shape.width, rows = call.shape.groups * call.shape.rows;
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        const bool keep = width * sizeof(T) <= kMaxShared;
        const auto run = [&](auto gated, auto step) {
            constexpr int kStep = decltype(step)::kValue;
            launch<&adaln_forward_kernel<T, kStep, decltype(gated)::kValue != 0>>(
                gated.kValue ? "gated_residual_adaln" : "adaln_modulate", dim3(static_cast<unsigned>(rows)),
                threads_for(width / kStep), keep ? width * sizeof(T) : 0, stream, call, keep);
        };
        if (call.gate.data != nullptr)
            with_width<T>(width,
                          {place(call.x), place(call.y), place(call.x_new), place(call.out), place(call.gate.data),
                           place(call.shift.data), place(call.scale.data), bytes(call.gate), bytes(call.shift),
                           bytes(call.scale)},
                          [&](auto step) { run(Constant<1>{}, step); });
        else
            with_width<T>(width,
                          {place(call.x), place(call.out), place(call.shift.data), place(call.scale.data),
                           bytes(call.shift), bytes(call.scale)},
                          [&](auto step) { run(Constant<0>{}, step); });
    });
}

int64_t adaln_chunks(int64_t groups, int64_t rows) {
    const int64_t chunk = rows_per_chunk(groups * rows, 8);
    return (rows + chunk - 1) / chunk;
}

void adaln_backward(Dtype dtype, const AdalnBackward& call, Stream stream) {
    const auto [groups, rows, width] = call.shape;
    const int64_t chunks = adaln_chunks(groups, rows), chunk_rows = rows_per_chunk(groups * rows, 8);
    const bool gated = call.gate.data != nullptr;
    const int sums = gated ? 3 : 2;
    const bool keep = sums * width * sizeof(float) <= kMaxShared;
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto run = [&](auto gate, auto step) {
            constexpr int kStep = decltype(step)::kValue;
            launch<&adaln_backward_kernel<T, kStep, decltype(gate)::kValue != 0>>(
                gate.kValue ? "gated_residual_adaln_backward" : "adaln_modulate_backward",
                dim3(static_cast<unsigned>(call.shape.groups * chunks)), threads_for(call.shape.width / kStep),
                keep ? sums * call.shape.width * sizeof(float) : 0, stream, call, static_cast<unsigned>(chunks),
                chunk_rows, keep);
        };
        if (gated)
            with_width<T>(call.shape.width,
                          {place(call.grad), place(call.grad_x_new), place(call.x), place(call.y), place(call.dx),
                           place(call.dy), place(call.partial), place(call.gate.data), place(call.scale.data),
                           bytes(call.gate), bytes(call.scale)},
                          [&](auto step) { run(Constant<1>{}, step); });
        else
            with_width<T>(call.shape.width,
                          {place(call.grad), place(call.x), place(call.dx), place(call.partial),
                           place(call.scale.data), bytes(call.scale)},
                          [&](auto step) { run(Constant<0>{}, step); });
    });
    const Sums to = gated ? Sums{{call.dshift, call.dscale, call.dgate}} : Sums{{call.dshift, call.dscale, nullptr}};
    sum_chunks(call.partial, groups, chunks, width, sums, to, stream);
}

}  // namespace cd::cuda

namespace cd {

template <>
struct Read<cuda::Rows> : ReadMembers<cuda::Rows, int64_t, int64_t, int64_t> {};
template <>
struct Read<cuda::Modulation> : ReadMembers<cuda::Modulation, const float*, int64_t> {};
template <>
struct Read<cuda::AdalnForward>
    : ReadMembers<cuda::AdalnForward, cuda::Rows, const void*, const void*, cuda::Modulation, cuda::Modulation,
                  cuda::Modulation, float, void*, void*, float*> {};
template <>
struct Read<cuda::AdalnBackward>
    : ReadMembers<cuda::AdalnBackward, cuda::Rows, const void*, const void*, const void*, const void*, const float*,
                  cuda::Modulation, cuda::Modulation, void*, void*, float*, float*, float*, float*> {};

CD_CUDA_FUNCTION(adaln_chunks, cuda::adaln_chunks)
CD_CUDA_FUNCTION(adaln_forward, cuda::adaln_forward)
CD_CUDA_FUNCTION(adaln_backward, cuda::adaln_backward)

}  // namespace cd
