// Sums whose order depends on nothing but the shape: no atomics.
#pragma once

#include "device/launch.h"

namespace cd::cuda {

// Every thread gets the block's sums of `count` values. `scratch` holds 32 * count floats; a kernel that calls
// this again and again alternates between two of them, or one call's readers meet the next one's writers.
template <int count>
CD_DEVICE void block_sum(float (&values)[count], float* scratch) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int i = 0; i < count; i++) {
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) values[i] += __shfl_xor_sync(~0u, values[i], mask);
        if (lane == 0) scratch[warp * count + i] = values[i];
    }
#if !defined(CD_PLANT_RACE)  // the race detector's own test
    __syncthreads();
#endif
#pragma unroll
    for (int i = 0; i < count; i++) {
        values[i] = 0.0f;
        for (unsigned w = 0; w < warps; w++) values[i] += scratch[w * count + i];
    }
}

// Where sums over chunks go: result k of a group is `width` floats at to[k] + group * width.
struct Sums {
    float* to[3];
};

namespace {

// partial is [groups, chunks, results * width]. A block takes 32 neighbouring columns of one group; its 8 warps
// share the chunks, and their sums are added in the order of the warps.
__global__ void __launch_bounds__(256)
    sum_chunks_kernel(const float* CD_RESTRICT partial, int64_t chunks, unsigned width, unsigned columns, Sums sums) {
    CD_SHARED(float, scratch, 256);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned column = blockIdx.y * 32 + lane;
    const int64_t group = blockIdx.x;
    float sum = 0.0f;
    if (column < columns)
        for (int64_t c = warp; c < chunks; c += 8) sum += partial[(group * chunks + c) * columns + column];
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0 || column >= columns) return;
    for (unsigned w = 1; w < 8; w++) sum += scratch[w * 32 + lane];
    // Not to[column / width]: an index known only at run time would move the addresses to the stack.
    float* const to = column < width ? sums.to[0] : column < 2 * width ? sums.to[1] : sums.to[2];
    to[group * width + column % width] = sum;
}

inline void sum_chunks(const float* partial, int64_t groups, int64_t chunks, int64_t width, int results, Sums sums,
                       Stream stream) {
    const auto columns = static_cast<unsigned>(width * results);
    const dim3 grid(static_cast<unsigned>(groups), (columns + 31) / 32);
    launch<&sum_chunks_kernel>("sum_chunks", grid, 256, 0, stream, partial, chunks, static_cast<unsigned>(width),
           columns, sums);
}

}  // namespace

// Rows that one block adds up: as many as leave about a thousand blocks, however fast the device, so that the
// order of the sums is the same on every one.
inline int64_t rows_per_chunk(int64_t rows_in_all, int64_t least) {
    const int64_t rows = (rows_in_all + 1023) / 1024;
    return rows < least ? least : rows;
}

}  // namespace cd::cuda
