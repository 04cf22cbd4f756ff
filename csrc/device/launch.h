// One kernel text, two compilers. Under nvcc it is CUDA. Under a C++ compiler it is the emulator's, which runs
// the same text on the CPU: for tests, and on machines without a CUDA toolkit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "emulator/cuda.h"
#endif

// Shared memory of a kernel: an array whose size is known here, or one as long as the launch says.
#if defined(__CUDACC__)
#define CD_SHARED(T, name, count) __shared__ T name[count]
#define CD_DYNAMIC_SHARED(T, name)                      \
    extern __shared__ __align__(128) unsigned char cd_dynamic_shared[]; \
    T* const name = reinterpret_cast<T*>(cd_dynamic_shared)
#else
#define CD_SHARED(T, name, count)       \
    static const char name##_site = 0; \
    T* const name = static_cast<T*>(::cd::emulator::shared_array(&name##_site, (count) * sizeof(T)))
#define CD_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::cd::emulator::dynamic_shared())
#endif

#define CD_DEVICE __device__ __forceinline__
#define CD_RESTRICT __restrict__

namespace cd::cuda {

using Stream = void*;  // a cudaStream_t

// Runs `kernel` on `grid` blocks of `threads` threads, with `shared` bytes of dynamic shared memory each. An
// empty grid runs nothing.
//
// Throws std::runtime_error, naming the kernel, when it cannot be launched.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared, Stream stream,
            Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    const auto fail = [&](const std::string& why) {
        throw std::runtime_error("CUDA kernel " + std::string(name) + " could not be launched: " + why);
    };
#if defined(__CUDACC__)
    const auto launch_with = [&](Parameters... values) {
        const void* function = reinterpret_cast<const void*>(kernel);
        cudaError_t code = cudaSuccess;
        // More than this must be asked for.
        if (shared > 48 * 1024)
            code = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
        if (code == cudaSuccess) {
            void* pointers[] = {static_cast<void*>(&values)...};
            code = cudaLaunchKernel(function, grid, dim3(threads), pointers, shared, static_cast<cudaStream_t>(stream));
        }
        if (code != cudaSuccess) {
            cudaGetLastError();  // not to be reported a second time, by someone else
            fail(cudaGetErrorString(code));
        }
    };
    launch_with(arguments...);
#else
    (void)stream;
    try {
        emulator::launch(grid, threads, shared, [=] { kernel(arguments...); });
    } catch (const std::exception& error) {
        fail(error.what());
    }
#endif
}

}  // namespace cd::cuda
