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
// `kStep` channels at a time, and those with which they turn.
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
            const unsigned angle = tables.interleaved ? i / 2 : i < half ? i : i - half, count_t = tables.t, count_h = tables.h;
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

// What a lane has of a row at a time: with rotation the first and the second channel of kStep pairs, from the i-th on,
// which are half a head apart or neighbours; without, kStep channels and no b.
template <bool kInterleaved, int kStep>
struct Channels {
    bool turn;
    unsigned half;

    template <class S>
    CD_DEVICE void get(const S* row, unsigned i, float (&a)[kStep], float (&b)[kStep]) const {
        if (!kInterleaved || !turn) {
            load(row + i, a);
            if (turn) load(row + half + i, b);
            return;
        }
        float both[2][kStep];
        load(row + 2 * i, both[0]);
        load(row + 2 * i + kStep, both[1]);
#pragma unroll
        for (int j = 0; j < kStep; j++) {
            a[j] = both[2 * j / kStep][2 * j % kStep];
            b[j] = both[(2 * j + 1) / kStep][(2 * j + 1) % kStep];
        }
    }
    template <class S>
    CD_DEVICE void put(S* row, unsigned i, const float (&a)[kStep], const float (&b)[kStep]) const {
        if (!kInterleaved || !turn) {
            store(row + i, a);
            if (turn) store(row + half + i, b);
            return;
        }
        float both[2][kStep];
#pragma unroll
        for (int j = 0; j < kStep; j++) {
            both[2 * j / kStep][2 * j % kStep] = a[j];
            both[(2 * j + 1) / kStep][(2 * j + 1) % kStep] = b[j];
        }
        store(row + 2 * i, both[0]);
        store(row + 2 * i + kStep, both[1]);
    }
};

// Block (token, side). out = rope(x * rstd * weight).
template <class T, int kStep, bool kInterleaved>
__global__ void __launch_bounds__(256) norm_rope_forward_kernel(NormRope call, unsigned lanes) {
    CD_DYNAMIC_SHARED(float, angles);
    const HeadsForward& side = blockIdx.y == 0 ? call.forward[0] : call.forward[1];
    const int64_t token = blockIdx.x;
    if (token >= side.tokens) return;
    const unsigned dim = static_cast<unsigned>(call.head_dim);
    const bool turn = call.tables.cos != nullptr;
    const unsigned half = turn ? dim / 2 : dim;  // without rotation there is no second half
    const Channels<kInterleaved, kStep> channels{turn, half};
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
            channels.get(x, i, a, b);
#pragma unroll
            for (int j = 0; j < kStep; j++) square += a[j] * a[j] + b[j] * b[j];
        }
        const float rstd = 1.0f / sqrtf(team_sum(square, lanes) / static_cast<float>(dim) + call.eps);
        if (!busy) continue;
        if (team.lane == 0) side.rstd[token * heads + head] = rstd;
        for (unsigned i = team.lane * kStep; i < half; i += lanes * kStep) {
            float a[kStep], b[kStep] = {}, weight[kStep], more_weight[kStep] = {};
            channels.get(x, i, a, b);
            channels.get(side.weight, i, weight, more_weight);
#pragma unroll
            for (int j = 0; j < kStep; j++) {
                a[j] *= rstd * weight[j];
                b[j] *= rstd * more_weight[j];
            }
            if (turn) {
                float c[kStep], s[kStep], more_c[kStep], more_s[kStep];
                channels.get(cos, i, c, more_c);
                channels.get(sin, i, s, more_s);
#pragma unroll
                for (int j = 0; j < kStep; j++) {
                    const float second = b[j] * more_c[j] + a[j] * more_s[j];
                    a[j] = a[j] * c[j] - b[j] * s[j];
                    b[j] = second;
                }
            }
            channels.put(out, i, a, b);
        }
    }
}

// Block (chunk of tokens, side). With dn the gradient before the rotation and xhat = x * rstd:
// dx = rstd * (dn * weight - xhat * mean(dn * weight * xhat)), dweight = sum dn * xhat, the sums of each team in a
// row of its own until the end.
template <class T, int kStep, bool kInterleaved>
__global__ void __launch_bounds__(256) norm_rope_backward_kernel(NormRope call, unsigned lanes, int64_t chunk_tokens) {
    CD_DYNAMIC_SHARED(float, shared);
    const HeadsBackward& side = blockIdx.y == 0 ? call.backward[0] : call.backward[1];
    const unsigned dim = static_cast<unsigned>(call.head_dim);
    const int64_t begin = blockIdx.x * chunk_tokens;
    if (begin >= side.tokens || (side.dx == nullptr && side.dweight == nullptr)) return;
    const int64_t end = begin + chunk_tokens < side.tokens ? begin + chunk_tokens : side.tokens;
    const bool turn = call.tables.cos != nullptr;
    const unsigned half = turn ? dim / 2 : dim;
    const Channels<kInterleaved, kStep> channels{turn, half};
    const Team team(lanes);
    float* const cos = shared;
    float* const sin = shared + dim;
    float* const sums = shared + 2 * dim + team.number * dim;
    const bool summed = side.dweight != nullptr;
    for (unsigned i = team.lane; summed && i < dim; i += lanes) sums[i] = 0.0f;
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
            // dn of the first and the second channels of pairs.
            const auto unturned = [&](unsigned i, float(&a)[kStep], float(&b)[kStep]) {
                channels.get(grad, i, a, b);
                if (!turn) return;
                float c[kStep], s[kStep], more_c[kStep], more_s[kStep];
                channels.get(cos, i, c, more_c);
                channels.get(sin, i, s, more_s);
#pragma unroll
                for (int j = 0; j < kStep; j++) {
                    const float first = a[j] * c[j] + b[j] * more_s[j];
                    b[j] = b[j] * more_c[j] - a[j] * s[j];
                    a[j] = first;
                }
            };
            float dot = 0.0f;
            for (unsigned i = team.lane * kStep; busy && i < half; i += lanes * kStep) {
                float dn[2][kStep] = {}, hat[2][kStep] = {}, weight[2][kStep] = {}, sum[2][kStep] = {};
                unturned(i, dn[0], dn[1]);
                channels.get(x, i, hat[0], hat[1]);
                channels.get(side.weight, i, weight[0], weight[1]);
                if (summed) channels.get(sums, i, sum[0], sum[1]);
#pragma unroll
                for (int j = 0; j < 2 * kStep; j++) {
                    const float share = dn[j / kStep][j % kStep] * hat[j / kStep][j % kStep] * rstd;
                    sum[j / kStep][j % kStep] += share;
                    dot += share * weight[j / kStep][j % kStep];
                }
                if (summed) channels.put(sums, i, sum[0], sum[1]);
            }
            if (side.dx == nullptr) continue;
            const float mean = team_sum(dot, lanes) / static_cast<float>(dim);
            for (unsigned i = team.lane * kStep; busy && i < half; i += lanes * kStep) {
                float dn[2][kStep] = {}, hat[2][kStep] = {}, weight[2][kStep] = {};
                unturned(i, dn[0], dn[1]);
                channels.get(x, i, hat[0], hat[1]);
                channels.get(side.weight, i, weight[0], weight[1]);
#pragma unroll
                for (int j = 0; j < 2 * kStep; j++) {
                    float& one = dn[j / kStep][j % kStep];
                    one = rstd * (one * weight[j / kStep][j % kStep] - hat[j / kStep][j % kStep] * rstd * mean);
                }
                channels.put(dx, i, dn[0], dn[1]);
            }
        }
    }
    if (!summed) return;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < dim; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned t = 0; t < team.count; t++) sum += shared[(2 + t) * dim + i];
        side.partial[blockIdx.x * static_cast<int64_t>(dim) + i] = sum;
    }
}

// Calls `run` with the channels that a lane moves at once, whether neighbours turn with each other, and the lanes of a
// team.
template <class T, class Run>
void with_team(const NormRope& call, bool aligned, Run run) {
    const int64_t span = call.tables.cos == nullptr ? call.head_dim : call.head_dim / 2;
    const auto lanes = [&](int64_t step) {
        unsigned count = 1;
        while (count < 32 && count * step < span) count *= 2;
        return count;
    };
    // A multiple of what 16 bytes hold is one of four floats too, which is what weights and angles are.
    const auto with = [&](auto step) {
        const unsigned count = lanes(decltype(step)::kValue);
        if (call.tables.cos != nullptr && call.tables.interleaved)
            run(step, Constant<1>{}, count);
        else
            run(step, Constant<0>{}, count);
    };
    if (aligned && span % kWide<T> == 0)
        with(Constant<kWide<T>>{});
    else
        with(Constant<1>{});
}

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace

void norm_rope_forward(Dtype dtype, const NormRope& call, Stream stream) {
    with_type(dtype, [&](auto zero) {
        using T = decltype(zero);
        bool aligned = true;
        for (const HeadsForward& side : call.forward)
            aligned = aligned && (place(side.x) | place(side.out) | place(side.weight) | side.stride * sizeof(T)) % 16 == 0;
        with_team<T>(call, aligned, [&](auto step, auto interleaved, unsigned lanes) {
            const int64_t heads = larger(call.forward[0].heads, call.forward[1].heads);
            launch<&norm_rope_forward_kernel<T, decltype(step)::kValue, (decltype(interleaved)::kValue != 0)>>("norm_rope_forward",
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
        with_team<T>(call, aligned, [&](auto step, auto interleaved, unsigned lanes) {
            const int64_t heads = larger(call.backward[0].heads, call.backward[1].heads);
            const unsigned threads = threads_for(heads * lanes);
            launch<&norm_rope_backward_kernel<T, decltype(step)::kValue, (decltype(interleaved)::kValue != 0)>>("norm_rope_backward",
                   dim3(static_cast<unsigned>(chunks), 2), threads,
                   (2 + threads / lanes) * call.head_dim * sizeof(float), stream, call, lanes, chunk);
        });
    });
    for (const HeadsBackward& side : call.backward)
        if (side.dweight != nullptr) sum_chunks(side.partial, 1, (side.tokens + chunk - 1) / chunk, call.head_dim, 1, {{side.dweight, nullptr, nullptr}},
                   stream);
}

}  // namespace cd::cuda

namespace cd {

// As for the CPU (qk_norm_rope.cpp).
template <>
struct Read<cuda::Tables> {
    static cuda::Tables from(Arguments& in) {
        cuda::Tables tables{};
        tables.cos = in.next<const float*>();
        tables.sin = in.next<const float*>();
        const int how = in.next<int>();
        tables.per_sample = how & 1;
        tables.interleaved = how & 2;
        const auto grid = in.next<std::vector<int64_t>>();
        if (grid.empty()) return tables;
        const auto at = [&](size_t i) { return static_cast<int>(grid.at(i)); };
        return {tables.cos, tables.sin, tables.per_sample, at(0), at(1), at(2), at(3), at(4), at(5),
                tables.interleaved};
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
