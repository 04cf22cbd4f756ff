// Gradients of attention (Dao 2023, arXiv 2307.08691, algorithm 2), the scores recomputed from the log-sum-exp.
// With P = exp(scale Q K^T - lse), dP = dO V^T and dS = P (dP - delta), delta = rowsum(dO O) - dlse:
// dQ = scale dS K, dK = scale dS^T Q and dV = P^T dO. dQ and (dK, dV) have a kernel each, which costs two more
// products of tiles than one kernel with atomics and gives the same bits every time.
#include "device/attention.h"

namespace cd::cuda {
namespace {

// The second kernel reads these, written by the first: the log-sum-exp as an exponent of two, and delta.
struct alignas(8) RowStats {
    float lse, delta;
};

// The lane's share, a fourth, of the sum of a row's products.
template <class T>
CD_DEVICE float dot(const T* a, const T* b, int dim, int lane) {
    float sum = 0.0f;
    for (int i = lane % 4 * 8; i < dim; i += 32) {
        float x[8], y[8];
        load(a + i, x);
        load(b + i, y);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += x[j] * y[j];
    }
    return sum;
}

// A block has 64 queries of a head, and goes over tiles of keys.
template <class T, int kDim, int kKeys>
__global__ void __launch_bounds__(kAttentionThreads, 2) attention_dq_kernel(Attention call, int padded) {
    CD_DYNAMIC_SHARED(T, q_tile);
    T* const grad_tile = q_tile + kAttentionRows * kDim;
    T* const k_tiles = grad_tile + kAttentionRows * kDim;
    T* const v_tiles = k_tiles + 2 * kKeys * kDim;
    const Place place(call);
    const int lane = place.lane, row = place.warp * 16;
    const T *grad = place.of<T>(call.grad), *out = place.of<T>(call.out);
    const T *k = place.of<T>(call.k), *v = place.of<T>(call.v);
    load_tile<kDim, kAttentionRows, kAttentionThreads>(q_tile, place.of<T>(call.q), call.q.row, place.first,
                                                       call.queries, call.dim);
    load_tile<kDim, kAttentionRows, kAttentionThreads>(grad_tile, grad, call.grad.row, place.first, call.queries,
                                                       call.dim);
    const auto load_keys = [&](int tile) {
        const int at = tile % 2 * kKeys * kDim;
        load_tile<kDim, kKeys, kAttentionThreads>(k_tiles + at, k, call.k.row, tile * kKeys, call.keys, call.dim);
        load_tile<kDim, kKeys, kAttentionThreads>(v_tiles + at, v, call.v.row, tile * kKeys, call.keys, call.dim);
        commit_copies();
    };
    if (call.dq.data != nullptr) load_keys(0);

    float lse[2], delta[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int query = place.first + row + lane / 4 + h * 8;
        const bool present = query < call.queries;
        const int64_t at = place.of(call, call.queries) + query;
        delta[h] = row_sum(present ? dot(grad + query * call.grad.row, out + query * call.out.row, call.dim, lane) : 0.0f);
        if (present && call.grad_lse != nullptr) delta[h] -= call.grad_lse[at];
        // A query that is not there has an infinite log-sum-exp, and so no probabilities.
        lse[h] = present ? call.lse[at] * kLog2E : INFINITY;
        if (lane % 4 == 0)
            reinterpret_cast<RowStats*>(call.scratch)[place.of(call, padded) + query] = {lse[h], delta[h]};
    }
    if (call.dq.data == nullptr) return;
    Product<kDim> dq;
    clear(dq);
    const float scale = call.scale * kLog2E;
    const int tiles = (call.keys + kKeys - 1) / kKeys;
    for (int tile = 0; tile < tiles; tile++) {
        await_tile(tile, tiles, load_keys);
        const int at = tile % 2 * kKeys * kDim;
        Product<kKeys> s, dp;
        clear(s);
        clear(dp);
        multiply_transposed<T, kDim>(s, q_tile, row, k_tiles + at, lane);
        multiply_transposed<T, kDim>(dp, grad_tile, row, v_tiles + at, lane);
#pragma unroll
        for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[n][j] = exp2_fast(s[n][j] * scale - lse[j / 2]) * (dp[n][j] - delta[j / 2]);
        fill_missing(s, tile * kKeys, call.keys, 0.0f, lane);
        multiply_product<T, kDim>(dq, s, k_tiles + at, lane);
        __syncthreads();  // the tile is overwritten next
    }
    store_rows(place.of<T>(call.dq), call.dq.row, place.first + row, call.queries, call.dim, dq, call.scale, call.scale,
               lane);
}

// A block has 64 keys of a head, and goes over tiles of queries, on transposed scores: keys that are not there are rows
// whose results nobody stores.
template <class T, int kDim, int kQueries>
__global__ void __launch_bounds__(kAttentionThreads, 2) attention_dkv_kernel(Attention call, int padded) {
    CD_DYNAMIC_SHARED(T, k_tile);
    T* const v_tile = k_tile + kAttentionRows * kDim;
    T* const q_tiles = v_tile + kAttentionRows * kDim;
    T* const grad_tiles = q_tiles + 2 * kQueries * kDim;
    RowStats* const stats = reinterpret_cast<RowStats*>(grad_tiles + 2 * kQueries * kDim);
    const Place place(call);
    const int lane = place.lane, row = place.warp * 16;
    const T *q = place.of<T>(call.q), *grad = place.of<T>(call.grad);
    const RowStats* const all_stats = reinterpret_cast<const RowStats*>(call.scratch) + place.of(call, padded);
    load_tile<kDim, kAttentionRows, kAttentionThreads>(k_tile, place.of<T>(call.k), call.k.row, place.first, call.keys,
                                                       call.dim);
    load_tile<kDim, kAttentionRows, kAttentionThreads>(v_tile, place.of<T>(call.v), call.v.row, place.first, call.keys,
                                                       call.dim);
    const auto load_queries = [&](int tile) {
        const int first = tile * kQueries, at = tile % 2 * kQueries;
        load_tile<kDim, kQueries, kAttentionThreads>(q_tiles + at * kDim, q, call.q.row, first, call.queries, call.dim);
        load_tile<kDim, kQueries, kAttentionThreads>(grad_tiles + at * kDim, grad, call.grad.row, first, call.queries,
                                                     call.dim);
        const int two = 2 * static_cast<int>(threadIdx.x);
        if (two < kQueries) copy_async(stats + at + two, all_stats + first + two, true);
        commit_copies();
    };
    load_queries(0);

    Product<kDim> dk, dv;
    clear(dk);
    clear(dv);
    const float scale = call.scale * kLog2E;
    const int tiles = (call.queries + kQueries - 1) / kQueries;
    for (int tile = 0; tile < tiles; tile++) {
        await_tile(tile, tiles, load_queries);
        const int at = tile % 2 * kQueries, column = at + lane % 4 * 2;
        Product<kQueries> s, dp;
        clear(s);
        multiply_transposed<T, kDim>(s, k_tile, row, q_tiles + at * kDim, lane);
#pragma unroll
        for (int n = 0; n < kQueries / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) s[n][j] = exp2_fast(s[n][j] * scale - stats[column + n * 8 + j % 2].lse);
        if (call.dv.data != nullptr) multiply_product<T, kDim>(dv, s, grad_tiles + at * kDim, lane);
        if (call.dk.data != nullptr) {
            clear(dp);
            multiply_transposed<T, kDim>(dp, v_tile, row, grad_tiles + at * kDim, lane);
#pragma unroll
            for (int n = 0; n < kQueries / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) s[n][j] *= dp[n][j] - stats[column + n * 8 + j % 2].delta;
            multiply_product<T, kDim>(dk, s, q_tiles + at * kDim, lane);
        }
        __syncthreads();  // the tile is overwritten next
    }
    if (call.dk.data != nullptr)
        store_rows(place.of<T>(call.dk), call.dk.row, place.first + row, call.keys, call.dim, dk, call.scale, call.scale,
                   lane);
    if (call.dv.data != nullptr)
        store_rows(place.of<T>(call.dv), call.dv.row, place.first + row, call.keys, call.dim, dv, 1.0f, 1.0f, lane);
}

}  // namespace

int attention_padded(int queries) { return (queries + kAttentionRows - 1) / kAttentionRows * kAttentionRows; }

void attention_backward(Dtype dtype, const Attention& call, Stream stream) {
    with_head(dtype, call, [&](auto zero, auto width) {
        using T = decltype(zero);
        constexpr int kDim = decltype(width)::kValue;
        // Narrower tiles for wide heads: dk and dv alone take 128 registers then, and two blocks are to share an
        // sm_80's shared memory.
        constexpr int kOthers = kDim == 64 ? 64 : 32;
        constexpr size_t kTiles = sizeof(T) * kDim * (2 * kAttentionRows + 4 * kOthers);
        const int padded = attention_padded(call.queries);
        launch<&attention_dq_kernel<T, kDim, kOthers>>("attention_dq", attention_grid(call.queries, call),
               kAttentionThreads, kTiles, stream, call, padded);
        if (call.dk.data == nullptr && call.dv.data == nullptr) return;
        launch<&attention_dkv_kernel<T, kDim, kOthers>>("attention_dkv", attention_grid(call.keys, call),
               kAttentionThreads, kTiles + 2 * kOthers * sizeof(RowStats), stream, call, padded);
    });
}

}  // namespace cd::cuda

CD_CUDA_FUNCTION(attention_padded, cd::cuda::attention_padded)
CD_CUDA_FUNCTION(attention_backward,
                 [](cd::cuda::Dtype dtype, cd::cuda::Attention call, cd::cuda::Strided grad, const float* grad_lse,
                    cd::cuda::Strided q, cd::cuda::Strided k, cd::cuda::Strided v, cd::cuda::Strided out, float* lse,
                    cd::cuda::Strided dq, cd::cuda::Strided dk, cd::cuda::Strided dv, float* scratch,
                    cd::cuda::Stream stream) {
                     call.grad = grad;
                     call.grad_lse = grad_lse;
                     call.q = q;
                     call.k = k;
                     call.v = v;
                     call.out = out;
                     call.lse = lse;
                     call.dq = dq;
                     call.dk = dk;
                     call.dv = dv;
                     call.scratch = scratch;
                     cd::cuda::attention_backward(dtype, call, stream);
                 })
