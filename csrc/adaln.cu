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
template <class X, class Y, class O, int kStep, bool kGated>
__global__ void __launch_bounds__(256) adaln_forward_kernel(AdalnForward call, bool keep) {
    CD_DYNAMIC_SHARED(X, kept);
    CD_SHARED(float, scratch, 64);
    const int64_t row = blockIdx.x, width = call.shape.width;
    const int64_t group = blockIdx.x / static_cast<unsigned>(call.shape.rows);
    const X* CD_RESTRICT x = static_cast<const X*>(call.x) + row * width;
    X* x_new = static_cast<X*>(call.x_new) + row * width;
    O* CD_RESTRICT out = static_cast<O*>(call.out) + row * width;
    const float* CD_RESTRICT shift = call.shift.data + group * call.shift.stride;
    const float* CD_RESTRICT scale = call.scale.data + group * call.scale.stride;
    const int64_t first = threadIdx.x * kStep, step = blockDim.x * kStep;

    float sum[1] = {0.0f};
    for (int64_t i = first; i < width; i += step) {
        float value[kStep];
        load(x + i, value);
        if (kGated) {
            float y[kStep], gate[kStep];
            load(static_cast<const Y*>(call.y) + row * width + i, y);
            load(call.gate.data + group * call.gate.stride + i, gate);
#pragma unroll
            for (int j = 0; j < kStep; j++) value[j] = widen(narrow<X>(value[j] + gate[j] * y[j]));
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
    const float mean = call.rms ? 0.0f : sum[0] / static_cast<float>(width);

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
// dy = dx * gate, dgate = sum dx * y, and mean(n) is left out where rms. Each thread keeps the sums of its own columns.
template <class X, class Y, class O, int kStep, bool kGated>
__global__ void __launch_bounds__(256)
    adaln_backward_kernel(AdalnBackward call, unsigned chunks, int64_t chunk_rows, bool keep) {
    const int count = call.dshift == nullptr ? 0 : kGated && call.dgate != nullptr ? 3 : 2;
    CD_DYNAMIC_SHARED(float, kept);
    CD_SHARED(float, scratch, 128);
    const int64_t group = blockIdx.x / chunks, chunk = blockIdx.x % chunks, width = call.shape.width;
    const float* CD_RESTRICT scale = call.scale.data + group * call.scale.stride;
    const float* CD_RESTRICT gate = kGated ? call.gate.data + group * call.gate.stride : nullptr;
    float* const partial = call.partial + static_cast<int64_t>(blockIdx.x) * count * width;
    float* const sums = keep ? kept : partial;
    const int64_t first = threadIdx.x * kStep, step = blockDim.x * kStep;
    for (int64_t i = first; i < width; i += step) {
        const float zero[kStep] = {};
        for (int k = 0; k < count; k++) store(sums + k * width + i, zero);
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
        const O* CD_RESTRICT grad = static_cast<const O*>(call.grad) + row * width;
        const X* CD_RESTRICT x = static_cast<const X*>(call.x) + row * width;
        const float mean = call.stats[2 * row], rstd = call.stats[2 * row + 1];
        float means[2] = {0.0f, 0.0f};
        for (int64_t i = first; i < width; i += step) {
            float g[kStep], hat[kStep], times[kStep];
            load(grad + i, g);
            load(x + i, hat);
            load(scale + i, times);
            if (count > 0) add(i, g);
#pragma unroll
            for (int j = 0; j < kStep; j++) {
                hat[j] = (hat[j] - mean) * rstd;
                const float n = g[j] * (1.0f + times[j]);
                means[0] += n;
                means[1] += n * hat[j];
                g[j] *= hat[j];
            }
            if (count > 0) add(width + i, g);
        }
        block_sum(means, scratch + 64 * (r % 2));
        means[0] = call.rms ? 0.0f : means[0] / static_cast<float>(width);
        means[1] /= static_cast<float>(width);
        if (call.dx == nullptr && !kGated) continue;
        for (int64_t i = first; i < width; i += step) {
            float g[kStep], hat[kStep], times[kStep];
            load(grad + i, g);
            load(x + i, hat);
            load(scale + i, times);
            if (kGated && call.grad_x_new != nullptr) {
                float direct[kStep];
                load(static_cast<const X*>(call.grad_x_new) + row * width + i, direct);
#pragma unroll
                for (int j = 0; j < kStep; j++)
                    g[j] = direct[j] + rstd * (g[j] * (1.0f + times[j]) - means[0] - (hat[j] - mean) * rstd * means[1]);
            } else {
#pragma unroll
                for (int j = 0; j < kStep; j++)
                    g[j] = rstd * (g[j] * (1.0f + times[j]) - means[0] - (hat[j] - mean) * rstd * means[1]);
            }
            if (call.dx != nullptr) store(static_cast<X*>(call.dx) + row * width + i, g);
            if (kGated && call.dy != nullptr) {
                float dy[kStep];
                load(gate + i, dy);
#pragma unroll
                for (int j = 0; j < kStep; j++) dy[j] *= g[j];
                store(static_cast<Y*>(call.dy) + row * width + i, dy);
            }
            if (kGated && count == 3) {
                float y[kStep];
                load(static_cast<const Y*>(call.y) + row * width + i, y);
#pragma unroll
                for (int j = 0; j < kStep; j++) y[j] *= g[j];
                add(2 * width + i, y);
            }
        }
    }
    if (!keep) return;
    for (int64_t i = first; i < width; i += step) {
        for (int k = 0; k < count; k++) {
            float sum[kStep];
            load(sums + k * width + i, sum);
            store(partial + k * width + i, sum);
        }
    }
}

// One block per row forward, per chunk of a group's rows backward, where a thread keeps the sums of its columns.
template <class X, class Y, int kStep>
__global__ void __launch_bounds__(256) gated_residual_kernel(ResidualForward call) {
    const int64_t row = blockIdx.x, width = call.shape.width;
    const int64_t group = blockIdx.x / static_cast<unsigned>(call.shape.rows);
    for (int64_t i = threadIdx.x * kStep; i < width; i += blockDim.x * kStep) {
        float value[kStep], y[kStep], gate[kStep];
        load(static_cast<const X*>(call.x) + row * width + i, value);
        load(static_cast<const Y*>(call.y) + row * width + i, y);
        load(call.gate.data + group * call.gate.stride + i, gate);
#pragma unroll
        for (int j = 0; j < kStep; j++) value[j] += gate[j] * y[j];
        store(static_cast<X*>(call.out) + row * width + i, value);
    }
}

template <class X, class Y, int kStep>
__global__ void __launch_bounds__(256)
    gated_residual_backward_kernel(ResidualBackward call, unsigned chunks, int64_t chunk_rows) {
    const int64_t group = blockIdx.x / chunks, chunk = blockIdx.x % chunks, width = call.shape.width;
    const int64_t begin = chunk * chunk_rows;
    const int64_t end = begin + chunk_rows < call.shape.rows ? begin + chunk_rows : call.shape.rows;
    for (int64_t i = threadIdx.x * kStep; i < width; i += blockDim.x * kStep) {
        float gate[kStep], sum[kStep] = {};
        load(call.gate.data + group * call.gate.stride + i, gate);
        for (int64_t r = begin; r < end; r++) {
            const int64_t at = (group * call.shape.rows + r) * width + i;
            float g[kStep], out[kStep];
            load(static_cast<const X*>(call.grad) + at, g);
            if (call.dy != nullptr) {
#pragma unroll
                for (int j = 0; j < kStep; j++) out[j] = g[j] * gate[j];
                store(static_cast<Y*>(call.dy) + at, out);
            }
            if (call.dgate != nullptr) {
                load(static_cast<const Y*>(call.y) + at, out);
#pragma unroll
                for (int j = 0; j < kStep; j++) sum[j] += g[j] * out[j];
            }
        }
        if (call.dgate != nullptr) store(call.partial + static_cast<int64_t>(blockIdx.x) * width + i, sum);
    }
}

uintptr_t bytes(const Modulation& modulation) { return modulation.stride * sizeof(float); }

template <class X, class Y, class O, class Run>
bool is_mix(Elements wanted, Run run) {
    const auto number = [](auto zero) {
        using T = decltype(zero);
        return std::is_same_v<T, float> ? Dtype::fp32 : std::is_same_v<T, bf16> ? Dtype::bf16 : Dtype::fp16;
    };
    if (wanted != elements(number(X{}), number(Y{}), number(O{}))) return false;
    run(X{}, Y{}, O{});
    return true;
}

// Calls `run` with zeros of X, Y and O: all of one type, or of an fp32 residual stream with narrow others. Throws
// std::invalid_argument if there are no kernels for them.
template <class Run>
void with_elements(Elements wanted, Run run) {
    const bool served = is_mix<float, float, float>(wanted, run) || is_mix<bf16, bf16, bf16>(wanted, run) ||
                        is_mix<fp16, fp16, fp16>(wanted, run) || is_mix<float, bf16, bf16>(wanted, run) ||
                        is_mix<float, fp16, fp16>(wanted, run) || is_mix<float, bf16, float>(wanted, run) ||
                        is_mix<float, fp16, float>(wanted, run);
    if (!served) throw std::invalid_argument("no kernel for elements " + std::to_string(static_cast<int>(wanted)));
}

}  // namespace

void adaln_forward(Elements elements, const AdalnForward& call, Stream stream) {
    const int64_t width = call.shape.width, rows = call.shape.groups * call.shape.rows;
    with_elements(elements, [&](auto x, auto y, auto o) {
        using X = decltype(x);
        using Y = decltype(y);
        using O = decltype(o);
        const bool keep = width * sizeof(X) <= kMaxShared;
        const auto run = [&](auto gated, auto step) {
            constexpr int kStep = decltype(step)::kValue;
            launch<&adaln_forward_kernel<X, Y, O, kStep, decltype(gated)::kValue != 0>>(
                gated.kValue ? "gated_residual_adaln" : "adaln_modulate", dim3(static_cast<unsigned>(rows)),
                threads_for(width / kStep), keep ? width * sizeof(X) : 0, stream, call, keep);
        };
        if (call.gate.data != nullptr)
            with_width<X>(width,
                          {place(call.x), place(call.y), place(call.x_new), place(call.out), place(call.gate.data),
                           place(call.shift.data), place(call.scale.data), bytes(call.gate), bytes(call.shift),
                           bytes(call.scale)},
                          [&](auto step) { run(Constant<1>{}, step); });
        else if constexpr (std::is_same_v<Y, O>)
            with_width<X>(width,
                          {place(call.x), place(call.out), place(call.shift.data), place(call.scale.data),
                           bytes(call.shift), bytes(call.scale)},
                          [&](auto step) { run(Constant<0>{}, step); });
    });
}

int64_t adaln_chunks(int64_t groups, int64_t rows) {
    const int64_t chunk = rows_per_chunk(groups * rows, 8);
    return (rows + chunk - 1) / chunk;
}

void adaln_backward(Elements elements, const AdalnBackward& call, Stream stream) {
    const auto [groups, rows, width] = call.shape;
    const int64_t chunks = adaln_chunks(groups, rows), chunk_rows = rows_per_chunk(groups * rows, 8);
    const bool gated = call.gate.data != nullptr;
    const int sums = call.dshift == nullptr ? 0 : gated && call.dgate != nullptr ? 3 : 2;
    const bool keep = sums > 0 && sums * width * sizeof(float) <= kMaxShared;
    with_elements(elements, [&](auto x, auto y, auto o) {
        using X = decltype(x);
        using Y = decltype(y);
        using O = decltype(o);
        const auto run = [&](auto gate, auto step) {
            constexpr int kStep = decltype(step)::kValue;
            launch<&adaln_backward_kernel<X, Y, O, kStep, decltype(gate)::kValue != 0>>(
                gate.kValue ? "gated_residual_adaln_backward" : "adaln_modulate_backward",
                dim3(static_cast<unsigned>(call.shape.groups * chunks)), threads_for(call.shape.width / kStep),
                keep ? sums * call.shape.width * sizeof(float) : 0, stream, call, static_cast<unsigned>(chunks),
                chunk_rows, keep);
        };
        if (gated)
            with_width<X>(call.shape.width,
                          {place(call.grad), place(call.grad_x_new), place(call.x), place(call.y), place(call.dx),
                           place(call.dy), place(call.partial), place(call.gate.data), place(call.scale.data),
                           bytes(call.gate), bytes(call.scale)},
                          [&](auto step) { run(Constant<1>{}, step); });
        else if constexpr (std::is_same_v<Y, O>)
            with_width<X>(call.shape.width,
                          {place(call.grad), place(call.x), place(call.dx), place(call.partial),
                           place(call.scale.data), bytes(call.scale)},
                          [&](auto step) { run(Constant<0>{}, step); });
    });
    if (sums == 0) return;
    const Sums to = gated ? Sums{{call.dshift, call.dscale, call.dgate}} : Sums{{call.dshift, call.dscale, nullptr}};
    sum_chunks(call.partial, groups, chunks, width, sums, to, stream);
}

void gated_residual_forward(Elements elements, const ResidualForward& call, Stream stream) {
    const auto [groups, rows, width] = call.shape;
    const auto blocks = static_cast<unsigned>(groups * rows);
    with_elements(elements, [&](auto x, auto y, auto o) {
        using X = decltype(x);
        using Y = decltype(y);
        if constexpr (std::is_same_v<Y, decltype(o)>)
            with_width<X>(call.shape.width,
                          {place(call.x), place(call.y), place(call.out), place(call.gate.data), bytes(call.gate)},
                          [&](auto step) {
                              constexpr int kStep = decltype(step)::kValue;
                              launch<&gated_residual_kernel<X, Y, kStep>>("gated_residual", dim3(blocks),
                                                                          threads_for(call.shape.width / kStep), 0, stream, call);
                          });
    });
}

void gated_residual_backward(Elements elements, const ResidualBackward& call, Stream stream) {
    const auto [groups, rows, width] = call.shape;
    const int64_t chunks = adaln_chunks(groups, rows), chunk_rows = rows_per_chunk(groups * rows, 8);
    with_elements(elements, [&](auto x, auto y, auto o) {
        using X = decltype(x);
        using Y = decltype(y);
        if constexpr (std::is_same_v<Y, decltype(o)>)
            with_width<X>(call.shape.width,
                          {place(call.grad), place(call.y), place(call.dy), place(call.partial), place(call.gate.data),
                           bytes(call.gate)},
                          [&](auto step) {
                              constexpr int kStep = decltype(step)::kValue;
                              launch<&gated_residual_backward_kernel<X, Y, kStep>>(
                                  "gated_residual_backward", dim3(static_cast<unsigned>(call.shape.groups * chunks)),
                                  threads_for(call.shape.width / kStep), 0, stream, call, static_cast<unsigned>(chunks),
                                  chunk_rows);
                          });
    });
    if (call.dgate != nullptr) sum_chunks(call.partial, groups, chunks, width, 1, {{call.dgate, nullptr, nullptr}}, stream);
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
                  cuda::Modulation, float, void*, void*, float*, bool> {};
template <>
struct Read<cuda::AdalnBackward>
    : ReadMembers<cuda::AdalnBackward, cuda::Rows, const void*, const void*, const void*, const void*, const float*,
                  cuda::Modulation, cuda::Modulation, void*, void*, float*, float*, float*, float*, bool> {};
template <>
struct Read<cuda::ResidualForward>
    : ReadMembers<cuda::ResidualForward, cuda::Rows, const void*, const void*, cuda::Modulation, void*> {};
template <>
struct Read<cuda::ResidualBackward>
    : ReadMembers<cuda::ResidualBackward, cuda::Rows, const void*, const void*, cuda::Modulation, void*, float*, float*> {};

CD_CUDA_FUNCTION(adaln_chunks, cuda::adaln_chunks)
CD_CUDA_FUNCTION(adaln_forward, cuda::adaln_forward)
CD_CUDA_FUNCTION(adaln_backward, cuda::adaln_backward)
CD_CUDA_FUNCTION(gated_residual_forward, cuda::gated_residual_forward)
CD_CUDA_FUNCTION(gated_residual_backward, cuda::gated_residual_backward)

}  // namespace cd
