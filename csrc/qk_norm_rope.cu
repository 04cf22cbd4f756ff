// Per-head RMSNorm of queries and keys and rotary embedding, both tensors in one launch. Memory-bound.
#include <initializer_list>

#include "common/operator.h"
#include "device/dispatch.h"
#include "device/reduce.h"
#include "qk_norm_rope_cuda.h"

namespace cd::cuda {
namespace {

constexpr int64_t kTokens = 4;  // that a block adds up at least

// The threads of a block are cut into teams of `lanes` (a power of two), one head each at a time. A lane owns
// `kStep` channels at a time, and those half a head further, with which they turn.
struct Team {
    unsigned lane, number, count;
    CD_DEVICE explicit Team(unsigned lanes)
        : lane(threadIdx.x % lanes), number(threadIdx.x / lanes), count(blockDim.x / lanes) {}
};

CD_DEVICE float team_sum(float value, unsigned lanes) {
    for (unsigned mask = lanes / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
    return value;
}

// The cosines and sines of one token for all its heads, in shared memory: [head_dim] each.
CD_DEVICE void load_angles(const NormRope& call, int64_t token, float* cos, float* sin) {
    const Tables& tables = call.tables;
    const unsigned length = static_cast<unsigned>(call.length), dim = static_cast<unsigned>(call.head_dim);
    const unsigned sample = static_cast<unsigned>(token) / length, n = static_cast<unsigned>(token) % length;
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) {
        int64_t at = (static_cast<int64_t>(tables.per_sample ? sample : 0) * length + n) * dim + i;
        if (tables.frames != 0) {
            const unsigned width = tables.width, plane = tables.height * width, half = dim / 2;
            const unsigned angle = i < half ? i : i - half, count_t = tables.t, count_h = tables.h;
            const int64_t before_h = static_cast<int64_t>(tables.frames) * count_t;
            const int64_t before_w = before_h + static_cast<int64_t>(tables.height) * count_h;
            at = tables.per_sample ? sample * (before_w + static_cast<int64_t>(width) * tables.w) : 0;
            if (angle < count_t)
                at += n / plane * count_t + angle;
            else if (angle < count_t + count_h)
                at += before_h + n / width % tables.height * count_h + angle - count_t;
            else
                at += before_w + n % width * tables.w + angle - count_t - count_h;
        }
        cos[i] = tables.cos[at];
        sin[i] = tables.sin[at];
    }
}

// Block (token, side). out = rope(x * rstd * weight).
template <class T, int kStep>
__global__ void __launch_bounds__(256) norm_rope_forward_kernel(NormRope call, unsigned lanes) {
    CD_DYNAMIC_SHARED(float, angles);
    const HeadsForward& side = blockIdx.y == 0 ? call.forward[0] : call.forward[1];
    const int64_t token = blockIdx.x;
    if (token >= side.tokens) return;
    const unsigned dim = static_cast<unsigned>(call.head_dim);
    const bool turn = call.tables.cos != nullptr;
    const unsigned half = turn ? dim / 2 : dim;  // without rotation there is no second half
    const float *cos = angles, *sin = angles + dim;
    if (turn) {
        load_angles(call, token, angles, angles + dim);
        __syncthreads();
    }
    const Team team(lanes);
    const unsigned heads = static_cast<unsigned>(side.heads), rounds = (heads + team.count - 1) / team.count;
    for (unsigned round = 0; round < rounds; round++) {
        // Teams without a head stay for the shuffles.
        const unsigned head = round * team.count + team.number;
        const bool busy = head < heads;
        const T* CD_RESTRICT x = static_cast<const T*>(side.x) + token * side.stride + head * dim;
        T* CD_RESTRICT out = static_cast<T*>(side.out) + (token * heads + head) * dim;
        float square = 0.0f;
        for (unsigned i = team.lane * kStep; busy && i < half; i += lanes * kStep) {
            float a[kStep], b[kStep] = {};
            load(x + i, a);
            if (turn) load(x + half + i, b);
#pragma unroll
            for (int j = 0; j < kStep; j++) square += a[j] * a[j] + b[j] * b[j];
        }
        const float rstd = 1.0f / sqrtf(team_sum(square, lanes) / static_cast<float>(dim) + call.eps);
        if (!busy) continue;
        if (team.lane == 0) side.rstd[token * heads + head] = rstd;
        for (unsigned i = team.lane * kStep; i < half; i += lanes * kStep) {
            float a[kStep], weight[kStep];
            load(x + i, a);
            load(side.weight + i, weight);
#pragma unroll
            for (int j = 0; j < kStep; j++) a[j] *= rstd * weight[j];
            if (turn) {
                float b[kStep], c[kStep], s[kStep];
                load(x + half + i, b);
                load(side.weight + half + i, weight);
                load(cos + half + i, c);
                load(sin + half + i, s);
                float second[kStep];
#pragma unroll
                for (int j = 0; j < kStep; j++) {
                    b[j] *= rstd * weight[j];
                    second[j] = b[j] * c[j] + a[j] * s[j];
                }
                store(out + half + i, second);
                load(cos + i, c);
                load(sin + i, s);
#pragma unroll
                for (int j = 0; j < kStep; j++) a[j] = a[j] * c[j] - b[j] * s[j];
            }
            store(out + i, a);
        }
    }
}

// Block (chunk of tokens, side). With dn the gradient before the rotation and xhat = x * rstd:
// dx = rstd * (dn * weight - xhat * mean(dn * weight * xhat)), dweight = sum dn * xhat, the sums of each team in a
// row of its own until the end.
template <class T, int kStep>
__global__ void __launch_bounds__(256) norm_rope_backward_kernel(NormRope call, unsigned lanes, int64_t chunk_tokens) {
    CD_DYNAMIC_SHARED(float, shared);
    const HeadsBackward& side = blockIdx.y == 0 ? call.backward[0] : call.backward[1];
    const unsigned dim = static_cast<unsigned>(call.head_dim);
    const int64_t begin = blockIdx.x * chunk_tokens;
    if (begin >= side.tokens) return;
    const int64_t end = begin + chunk_tokens < side.tokens ? begin + chunk_tokens : side.tokens;
    const bool turn = call.tables.cos != nullptr;
    const unsigned half = turn ? dim / 2 : dim;
    const Team team(lanes);
    float* const cos = shared;
    float* const sin = shared + dim;
    float* const sums = shared + 2 * dim + team.number * dim;
    for (unsigned i = team.lane; i < dim; i += lanes) sums[i] = 0.0f;
    __syncwarp();
    const unsigned heads = static_cast<unsigned>(side.heads), rounds = (heads + team.count - 1) / team.count;
    for (int64_t token = begin; token < end; token++) {
        if (turn) {
            __syncthreads();  // the last token's angles have been read
            load_angles(call, token, cos, sin);
            __syncthreads();
        }
        for (unsigned round = 0; round < rounds; round++) {
            const unsigned head = round * team.count + team.number;
            const bool busy = head < heads;
            const T* CD_RESTRICT x = static_cast<const T*>(side.x) + token * side.stride + head * dim;
            const T* CD_RESTRICT grad = static_cast<const T*>(side.grad) + (token * heads + head) * dim;
            T* CD_RESTRICT dx = static_cast<T*>(side.dx) + (token * heads + head) * dim;
            const float rstd = busy ? side.rstd[token * heads + head] : 0.0f;
            // dn of channels i and i + half.
            const auto unturned = [&](unsigned i, float(&a)[kStep], float(&b)[kStep]) {
                load(grad + i, a);
                if (!turn) return;
                float c[kStep], s[kStep], first[kStep];
                load(grad + half + i, b);
                load(cos + i, c);
                load(sin + half + i, s);
#pragma unroll
                for (int j = 0; j < kStep; j++) first[j] = a[j] * c[j] + b[j] * s[j];
                load(cos + half + i, c);
                load(sin + i, s);
#pragma unroll
                for (int j = 0; j < kStep; j++) {
                    b[j] = b[j] * c[j] - a[j] * s[j];
                    a[j] = first[j];
                }
            };
            float dot = 0.0f;
            const auto gather = [&](unsigned i, const float(&dn)[kStep]) {
                float hat[kStep], weight[kStep], sum[kStep];
                load(x + i, hat);
                load(side.weight + i, weight);
                load(sums + i, sum);
#pragma unroll
                for (int j = 0; j < kStep; j++) {
                    const float share = dn[j] * hat[j] * rstd;
                    sum[j] += share;
                    dot += share * weight[j];
                }
                store(sums + i, sum);
            };
            for (unsigned i = team.lane * kStep; busy && i < half; i += lanes * kStep) {
                float a[kStep], b[kStep];
                unturned(i, a, b);
                gather(i, a);
                if (turn) gather(half + i, b);
            }
            const float mean = team_sum(dot, lanes) / static_cast<float>(dim);
            const auto finish = [&](unsigned i, float(&dn)[kStep]) {
                float hat[kStep], weight[kStep];
                load(x + i, hat);
                load(side.weight + i, weight);
#pragma unroll
                for (int j = 0; j < kStep; j++) dn[j] = rstd * (dn[j] * weight[j] - hat[j] * rstd * mean);
                store(dx + i, dn);
            };
            for (unsigned i = team.lane * kStep; busy && i < half; i += lanes * kStep) {
                float a[kStep], b[kStep];
                unturned(i, a, b);
                finish(i, a);
                if (turn) finish(half + i, b);
            }
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned t = 0; t < team.count; t++) sum += shared[(2 + t) * dim + i];
        side.partial[blockIdx.x * static_cast<int64_t>(dim) + i] = sum;
    }
}

// Calls `run` with the channels that a lane moves at once and the lanes of a team.
template <class T, class Run>
void with_team(const NormRope& call, bool aligned, Run run) {
    const int64_t span = call.tables.cos == nullptr ? call.head_dim : call.head_dim / 2;
    const auto lanes = [&](int64_t step) {
        unsigned count = 1;
        while (count < 32 && count * step < span) count *= 2;
        return count;
    };
    // A multiple of what 16 bytes hold is one of four floats too, which is what weights and angles are.
    if (aligned && span % kWide<T> == 0)
        run(Constant<kWide<T>>{}, lanes(kWide<T>));
    else
        run(Constant<1>{}, lanes(1));
}

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace

void norm_rope_forward(Dtype dtype, const NormRope& call, Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        bool aligned = true;
        for (const HeadsForward& side : call.forward)
            aligned = aligned && (place(side.x) | place(side.out) | place(side.weight) | side.stride * sizeof(T)) % 16 == 0;
        with_team<T>(call, aligned, [&](auto step, unsigned lanes) {
            const int64_t heads = larger(call.forward[0].heads, call.forward[1].heads);
            launch<&norm_rope_forward_kernel<T, decltype(step)::kValue>>("norm_rope_forward",
                   dim3(static_cast<unsigned>(larger(call.forward[0].tokens, call.forward[1].tokens)), 2), threads_for(heads * lanes),
                   2 * call.head_dim * sizeof(float), stream, call, lanes);
        });
    });
}

int64_t norm_rope_chunks(int64_t tokens) {
    const int64_t chunk = rows_per_chunk(tokens, kTokens);
    return (tokens + chunk - 1) / chunk;
}

void norm_rope_backward(Dtype dtype, const NormRope& call, Stream stream) {
    const int64_t tokens = larger(call.backward[0].tokens, call.backward[1].tokens);
    const int64_t chunk = rows_per_chunk(tokens, kTokens), chunks = norm_rope_chunks(tokens);
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        bool aligned = true;
        for (const HeadsBackward& side : call.backward)
            aligned = aligned && (place(side.x) | place(side.grad) | place(side.dx) | place(side.weight) |
                                  side.stride * sizeof(T)) % 16 == 0;
        with_team<T>(call, aligned, [&](auto step, unsigned lanes) {
            const int64_t heads = larger(call.backward[0].heads, call.backward[1].heads);
            const unsigned threads = threads_for(heads * lanes);
            launch<&norm_rope_backward_kernel<T, decltype(step)::kValue>>("norm_rope_backward",
                   dim3(static_cast<unsigned>(chunks), 2), threads,
                   (2 + threads / lanes) * call.head_dim * sizeof(float), stream, call, lanes, chunk);
        });
    });
    for (const HeadsBackward& side : call.backward)
        sum_chunks(side.partial, 1, (side.tokens + chunk - 1) / chunk, call.head_dim, 1, {{side.dweight, nullptr, nullptr}},
                   stream);
}

}  // namespace cd::cuda

namespace cd {

// `grid`, a list, is empty for full tables, or (frames, height, width, t, h, w).
template <>
struct Read<cuda::Tables> {
    static cuda::Tables from(Arguments& in) {
        cuda::Tables tables{};
        tables.cos = in.next<const float*>();
        tables.sin = in.next<const float*>();
        tables.per_sample = in.next<bool>();
        const auto grid = in.next<std::vector<int64_t>>();
        if (grid.empty()) return tables;
        const auto at = [&](size_t i) { return static_cast<int>(grid.at(i)); };
        return {tables.cos, tables.sin, tables.per_sample, at(0), at(1), at(2), at(3), at(4), at(5)};
    }
};
template <>
struct Read<cuda::HeadsForward>
    : ReadList<cuda::HeadsForward, int64_t, int64_t, int64_t, const void*, const float*, void*, float*> {};
template <>
struct Read<cuda::HeadsBackward>
    : ReadList<cuda::HeadsBackward, int64_t, int64_t, int64_t, const void*, const void*, const float*, const float*,
               void*, float*, float*> {};

CD_CUDA_FUNCTION(norm_rope_chunks, cuda::norm_rope_chunks)
CD_CUDA_FUNCTION(norm_rope_forward, [](cuda::Dtype dtype, int64_t length, int64_t head_dim, cuda::Tables tables, float eps,
                                       cuda::HeadsForward q, cuda::HeadsForward k, cuda::Stream stream) {
    cuda::norm_rope_forward(dtype, {length, head_dim, tables, eps, {q, k}, {}}, stream);
})
CD_CUDA_FUNCTION(norm_rope_backward, [](cuda::Dtype dtype, int64_t length, int64_t head_dim, cuda::Tables tables,
                                        cuda::HeadsBackward q, cuda::HeadsBackward k, cuda::Stream stream) {
    cuda::norm_rope_backward(dtype, {length, head_dim, tables, 0.0f, {}, {q, k}}, stream);
})

}  // namespace cd
