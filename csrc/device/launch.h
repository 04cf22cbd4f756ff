// One kernel text, two compilers. Under nvcc it is CUDA. Under a C++ compiler it is the emulator's, which runs
// the same text on the CPU: for tests, and on machines without a CUDA toolkit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "device/call.h"

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

#if defined(__CUDACC__)
template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared, Stream stream,
                          Arguments... arguments) {
    const void* function = reinterpret_cast<const void*>(kernel);
    // More than this must be asked for.
    if (shared > 48 * 1024) {
        const cudaError_t code =
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
        if (code != cudaSuccess) return code;
    }
    const auto launch_with = [&](Parameters... values) {
        void* pointers[] = {static_cast<void*>(&values)...};
        return cudaLaunchKernel(function, grid, dim3(threads), pointers, shared, static_cast<cudaStream_t>(stream));
    };
    return launch_with(arguments...);
}
#endif

// Runs a kernel, which is a template argument so that the emulator can tell its name, on `grid` blocks of `threads`
// threads, with `shared` bytes of dynamic shared memory each. An empty grid runs nothing.
//
// Throws std::runtime_error, naming the kernel, when it cannot be launched.
template <auto kKernel, class... Arguments>
void launch(const char* name, dim3 grid, unsigned threads, size_t shared, Stream stream, Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    const auto fail = [&](const std::string& why) {
        throw std::runtime_error("CUDA kernel " + std::string(name) + " could not be launched: " + why);
    };
#if defined(__CUDACC__)
    const cudaError_t code = launch_kernel(kKernel, grid, threads, shared, stream, arguments...);
    if (code != cudaSuccess) {
        cudaGetLastError();  // not to be reported a second time, by someone else
        fail(cudaGetErrorString(code));
    }
#else
    (void)stream;
    try {
        emulator::launch({emulator::kernel_name<kKernel>(), grid, threads, shared, emulator::words_of(arguments...),
                          [=] { kKernel(arguments...); }});
    } catch (const std::exception& error) {
        fail(error.what());
    }
#endif
}

}  // namespace cd::cuda
