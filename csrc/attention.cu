// Attention with log-sum-exp after FlashAttention-2 (Dao 2023, arXiv 2307.08691): the scores of 64 queries and 64
// keys exist at a time, in registers.
#include <cfloat>

#include "device/attention.h"

namespace cd::cuda {
namespace {

constexpr int kKeys = 64;

// A block has 64 queries of a head, and goes over tiles of keys; the next one is on its way while this one is worked on.
// `scale` > 0 is for exponentials of two; `flip` changes the sign of two queries' elements, or does nothing.
template <class T, int kDim>
__global__ void __launch_bounds__(kAttentionThreads, 2) attention_kernel(Attention call, float scale, uint32_t flip) {
    CD_DYNAMIC_SHARED(T, q_tile);
    T* const k_tiles = q_tile + kAttentionRows * kDim;
    T* const v_tiles = k_tiles + 2 * kKeys * kDim;
    const Place place(call);
    const int lane = place.lane, row = place.warp * 16;
    const T *k = place.of<T>(call.k), *v = place.of<T>(call.v);
    load_tile<kDim, kAttentionRows, kAttentionThreads>(q_tile, place.of<T>(call.q), call.q.row, place.first,
                                                       call.queries, call.dim);
    commit_copies();
    const auto load_keys = [&](int tile) {
        const int at = tile % 2 * kKeys * kDim;
        load_tile<kDim, kKeys, kAttentionThreads>(k_tiles + at, k, call.k.row, tile * kKeys, call.keys, call.dim);
        load_tile<kDim, kKeys, kAttentionThreads>(v_tiles + at, v, call.v.row, tile * kKeys, call.keys, call.dim);
        commit_copies();
    };
    load_keys(0);
    wait_copies<1>();
    __syncthreads();
    uint32_t q[kDim / 16][4];
#pragma unroll
    for (int i = 0; i < kDim / 16; i++) {
        load_a<kDim>(q[i], q_tile, row, i, lane);
#pragma unroll
        for (int j = 0; j < 4; j++) q[i][j] ^= flip;
    }

    Product<kDim> out;
    float greatest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    clear(out);
    const int tiles = (call.keys + kKeys - 1) / kKeys;
    for (int tile = 0; tile < tiles; tile++) {
        await_tile(tile, tiles, load_keys);
        const int at = tile % 2 * kKeys * kDim;
        Product<kKeys> s;
        clear(s);
#pragma unroll
        for (int i = 0; i < kDim / 16; i++) multiply_step<T, kDim>(s, q[i], k_tiles + at, i, lane);
        fill_missing(s, tile * kKeys, call.keys, -INFINITY, lane);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = greatest[h];
#pragma unroll
            for (int n = 0; n < kKeys / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
            most = row_max(most);
            const float shrink = exp2_fast((greatest[h] - most) * scale), base = most * scale;
            greatest[h] = most;
            sum[h] *= shrink;
#pragma unroll
            for (int n = 0; n < kDim / 8; n++) {
                out[n][2 * h] *= shrink;
                out[n][2 * h + 1] *= shrink;
            }
#pragma unroll
            for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
                for (int j = 2 * h; j < 2 * h + 2; j++) {
                    s[n][j] = exp2_fast(s[n][j] * scale - base);
                    sum[h] += s[n][j];
                }
        }
        multiply_product<T, kDim>(out, s, v_tiles + at, lane);
#if !defined(CD_PLANT_RACE)  // the race detector's own test
        __syncthreads();     // the tile is overwritten next
#endif
    }
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float total = row_sum(sum[h]);
        inverse[h] = 1.0f / total;
        const int query = place.first + row + lane / 4 + h * 8;
        if (lane % 4 == 0 && query < call.queries)
            call.lse[place.of(call, call.queries) + query] = (greatest[h] * scale + log2f(total)) * kLn2;
    }
    store_rows(place.of<T>(call.out), call.out.row, place.first + row, call.queries, call.dim, out, inverse[0],
               inverse[1], lane);
}

}  // namespace

void attention_forward(Dtype dtype, const Attention& call, Stream stream) {
    // The greatest score is found before scaling, which keeps the order only if the factor is positive; and a key
    // that is not there, with a score of minus infinity, keeps it unless the factor is zero.
    const float scale = fmaxf(fabsf(call.scale), FLT_MIN) * kLog2E;
    const uint32_t flip = call.scale < 0.0f ? 0x80008000u : 0u;
    with_head(dtype, call, [&](auto zero, auto width) {
        constexpr int kDim = decltype(width)::kValue;
        launch<&attention_kernel<decltype(zero), kDim>>("attention", attention_grid(call.queries, call),
               kAttentionThreads, sizeof(zero) * kDim * (kAttentionRows + 4 * kKeys), stream, call, scale, flip);
    });
}

}  // namespace cd::cuda

CD_CUDA_FUNCTION(attention_forward, [](cd::cuda::Dtype dtype, cd::cuda::Attention call, cd::cuda::Strided q,
                                       cd::cuda::Strided k, cd::cuda::Strided v, cd::cuda::Strided out, float* lse,
                                       cd::cuda::Stream stream) {
    call.q = q;
    call.k = k;
    call.v = v;
    call.out = out;
    call.lse = lse;
    cd::cuda::attention_forward(dtype, call, stream);
})
