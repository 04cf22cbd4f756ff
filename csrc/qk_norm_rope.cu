// Per-head RMSNorm and rotate-half rotary embedding. A warp takes a head of a token; the heads of a token share
// its angles, which a block gathers once.
#include <initializer_list>

#include "device/dispatch.h"
#include "device/reduce.h"

namespace cd::cuda {
namespace {

constexpr unsigned kThreads = 256, kWarps = kThreads / 32;

// Cosine and sine of all channels of a token, in shared memory: [dim] and [dim].
CD_DEVICE void gather(const Rotary& tables, const Heads& shape, int64_t token, float* cos, float* sin) {
    const int64_t sample = token / shape.length, n = token % shape.length, half = shape.dim / 2;
    for (int64_t i = threadIdx.x; i < shape.dim; i += blockDim.x) {
        int64_t at;
        if (tables.frames == 0) {
            at = ((tables.per_sample ? sample : 0) * shape.length + n) * shape.dim + i;
        } else {
            const int64_t pair = i % half;
            if (pair < tables.t)
                at = n / (tables.height * tables.width) * tables.t + pair;
            else if (pair < tables.t + tables.h)
                at = tables.frames * tables.t + n / tables.width % tables.height * tables.h + pair - tables.t;
            else
                at = tables.frames * tables.t + tables.height * tables.h + n % tables.width * tables.w + pair -
                     tables.t - tables.h;
            if (tables.per_sample)
                at += sample * (tables.frames * tables.t + tables.height * tables.h + tables.width * tables.w);
        }
        cos[i] = tables.cos[at];
        sin[i] = tables.sin[at];
    }
}

CD_DEVICE float warp_sum(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
    return value;
}

// Calls visit(i) for the first of each kStep channels that this lane has among the first `count`.
template <int kStep, class Visit>
CD_DEVICE void each(int64_t count, Visit visit) {
    for (int64_t i = threadIdx.x % 32 * kStep; i < count; i += 32 * kStep) visit(i);
}

// One block per token.
template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) norm_rope_forward_kernel(NormRopeForward call) {
    CD_DYNAMIC_SHARED(float, cos);
    const auto& shape = call.shape;
    const int64_t token = blockIdx.x, half = shape.dim / 2;
    float* sin = cos + shape.dim;
    const bool rotate = call.rotary.cos != nullptr;
    if (rotate) {
        gather(call.rotary, shape, token, cos, sin);
        __syncthreads();
    }
    for (int64_t head = threadIdx.x / 32; head < shape.heads; head += kWarps) {
        const T* x = static_cast<const T*>(call.x) + token * shape.stride + head * shape.dim;
        T* out = static_cast<T*>(call.out) + (token * shape.heads + head) * shape.dim;
        float square = 0.0f;
        each<kStep>(shape.dim, [&](int64_t i) {
            float value[kStep];
            load(x + i, value);
#pragma unroll
            for (int j = 0; j < kStep; j++) square += value[j] * value[j];
        });
        const float rstd = 1.0f / sqrtf(warp_sum(square) / static_cast<float>(shape.dim) + call.eps);
        if (threadIdx.x % 32 == 0) call.rstd[token * shape.heads + head] = rstd;
        if (!rotate) {
            each<kStep>(shape.dim, [&](int64_t i) {
                float value[kStep];
                load(x + i, value);
#pragma unroll
                for (int j = 0; j < kStep; j++) value[j] *= rstd * call.weight[i + j];
                store(out + i, value);
            });
            continue;
        }
        each<kStep>(half, [&](int64_t i) {
            float first[kStep], second[kStep];
            load(x + i, first);
            load(x + half + i, second);
#pragma unroll
            for (int j = 0; j < kStep; j++) {
                const float a = first[j] * rstd * call.weight[i + j];
                const float b = second[j] * rstd * call.weight[half + i + j];
                first[j] = a * cos[i + j] - b * sin[i + j];
                second[j] = b * cos[half + i + j] + a * sin[half + i + j];
            }
            store(out + i, first);
            store(out + half + i, second);
        });
    }
}

// One block per chunk of tokens. With n = x * rstd * weight and dn the gradient before the rotation:
// dx = rstd * (dn * weight - x * rstd * mean(dn * weight * x * rstd)), dweight = sum dn * x * rstd.
// Each warp adds dweight up in shared memory of its own.
template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) norm_rope_backward_kernel(NormRopeBackward call, int64_t chunk) {
    CD_DYNAMIC_SHARED(float, cos);
    const auto& shape = call.shape;
    const int64_t half = shape.dim / 2, tokens = shape.batch * shape.length;
    float* sin = cos + shape.dim;
    float* dweight = sin + shape.dim + threadIdx.x / 32 * shape.dim;
    const bool rotate = call.rotary.cos != nullptr;
    for (int64_t i = threadIdx.x % 32; i < shape.dim; i += 32) dweight[i] = 0.0f;
    __syncwarp();
    const int64_t begin = blockIdx.x * chunk, end = begin + chunk < tokens ? begin + chunk : tokens;
    for (int64_t token = begin; token < end; token++) {
        if (rotate) {
            __syncthreads();  // the last token's angles may still be read
            gather(call.rotary, shape, token, cos, sin);
            __syncthreads();
        }
        for (int64_t head = threadIdx.x / 32; head < shape.heads; head += kWarps) {
            const T* x = static_cast<const T*>(call.x) + token * shape.stride + head * shape.dim;
            const T* grad = static_cast<const T*>(call.grad) + (token * shape.heads + head) * shape.dim;
            T* dx = static_cast<T*>(call.dx) + (token * shape.heads + head) * shape.dim;
            const float rstd = call.rstd[token * shape.heads + head];
            // The gradients before the rotation of channels i and i + half; without one, of the same channels.
            const auto unrotated = [&](int64_t i, float(&first)[kStep], float(&second)[kStep]) {
                load(grad + i, first);
                load(grad + half + i, second);
                if (!rotate) return;
#pragma unroll
                for (int j = 0; j < kStep; j++) {
                    const float a = first[j], b = second[j];
                    first[j] = a * cos[i + j] + b * sin[half + i + j];
                    second[j] = b * cos[half + i + j] - a * sin[i + j];
                }
            };
            float dot = 0.0f;
            each<kStep>(half, [&](int64_t i) {
                float first[kStep], second[kStep], low[kStep], high[kStep];
                unrotated(i, first, second);
                load(x + i, low);
                load(x + half + i, high);
#pragma unroll
                for (int j = 0; j < kStep; j++) {
                    first[j] *= low[j] * rstd;
                    second[j] *= high[j] * rstd;
                    dot += first[j] * call.weight[i + j] + second[j] * call.weight[half + i + j];
                    dweight[i + j] += first[j];
                    dweight[half + i + j] += second[j];
                }
            });
            const float mean = warp_sum(dot) / static_cast<float>(shape.dim);
            each<kStep>(half, [&](int64_t i) {
                float first[kStep], second[kStep], low[kStep], high[kStep];
                unrotated(i, first, second);
                load(x + i, low);
                load(x + half + i, high);
#pragma unroll
                for (int j = 0; j < kStep; j++) {
                    first[j] = rstd * (first[j] * call.weight[i + j] - low[j] * rstd * mean);
                    second[j] = rstd * (second[j] * call.weight[half + i + j] - high[j] * rstd * mean);
                }
                store(dx + i, first);
                store(dx + half + i, second);
            });
        }
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < shape.dim; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned warp = 0; warp < kWarps; warp++) sum += sin[shape.dim + warp * shape.dim + i];
        call.partial[blockIdx.x * shape.dim + i] = sum;
    }
}

// Tokens per block of the backward pass.
int64_t chunk_tokens(const Heads& shape) { return rows_per_chunk(shape.batch * shape.length, 4); }

// Elements moved at once: as many as give every lane work in half a head, if addresses allow.
template <class T, class Run>
void with_step(const Heads& shape, std::initializer_list<const void*> addresses, Run run) {
    constexpr int kPair = 2;
    bool paired = shape.dim / 2 % kPair == 0 && shape.stride % kPair == 0;
    for (const void* address : addresses) paired = paired && place(address) % (kPair * sizeof(T)) == 0;
    if (paired)
        run(Constant<kPair>{});
    else
        run(Constant<1>{});
}

}  // namespace

void norm_rope_forward(Dtype dtype, const NormRopeForward& call, Stream stream) {
    const unsigned tokens = static_cast<unsigned>(call.shape.batch * call.shape.length);
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_step<T>(call.shape, {call.x, call.out}, [&](auto step) {
            launch("qk_norm_rope", &norm_rope_forward_kernel<T, decltype(step)::kValue>, dim3(tokens), kThreads,
                   2 * call.shape.dim * sizeof(float), stream, call);
        });
    });
}

int64_t norm_rope_chunks(const Heads& shape) {
    const int64_t chunk = chunk_tokens(shape);
    return (shape.batch * shape.length + chunk - 1) / chunk;
}

void norm_rope_backward(Dtype dtype, const NormRopeBackward& call, Stream stream) {
    const int64_t chunks = norm_rope_chunks(call.shape), dim = call.shape.dim;
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        with_step<T>(call.shape, {call.x, call.grad, call.dx}, [&](auto step) {
            launch("qk_norm_rope_backward", &norm_rope_backward_kernel<T, decltype(step)::kValue>,
                   dim3(static_cast<unsigned>(chunks)), kThreads, (2 + kWarps) * dim * sizeof(float), stream, call,
                   chunk_tokens(call.shape));
        });
    });
    sum_chunks(call.partial, 1, chunks, dim, 1, Sums{{call.dweight}}, stream);
}

}  // namespace cd::cuda
