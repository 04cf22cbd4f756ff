// The part of the CUDA language that the kernels use, for a C++ compiler that knows none of it. Warp
// functions take part in full: all threads of a warp that still run must come to them, whatever the mask.
#pragma once

#include <cmath>

#include "grid.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define CD_TEXT_(x) #x
#define CD_TEXT(x) CD_TEXT_(x)

namespace cd::emulator {
CD_UNSEEN inline dim3 thread_index() { return fiber().index; }
CD_UNSEEN inline dim3 block_index() { return block->index; }
CD_UNSEEN inline dim3 block_size() { return block->threads_of; }
CD_UNSEEN inline dim3 grid_size() { return block->blocks_of; }
CD_UNSEEN inline void* dynamic_shared() { return block->dynamic_shared; }
}  // namespace cd::emulator

#define threadIdx (::cd::emulator::thread_index())
#define blockIdx (::cd::emulator::block_index())
#define blockDim (::cd::emulator::block_size())
#define gridDim (::cd::emulator::grid_size())
#define __syncthreads() ::cd::emulator::block_barrier(__FILE__ ":" CD_TEXT(__LINE__))

inline void __syncwarp(unsigned = ~0u) { cd::emulator::warp_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return cd::emulator::Exchange(value).get<T>(cd::emulator::lane() ^ mask);
}

template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
    const unsigned lane = cd::emulator::lane(), from = lane + delta;
    return cd::emulator::Exchange(value).get<T>(from < cd::emulator::kWarp ? from : lane);
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return cd::emulator::Exchange(value).get<T>(lane % cd::emulator::kWarp);
}

inline float atomicAdd(float* at, float value) {
    float was, sum;
    __atomic_load(at, &was, __ATOMIC_RELAXED);
    do {
        sum = was + value;
    } while (!__atomic_compare_exchange(at, &was, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return was;
}
