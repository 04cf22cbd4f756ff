// What the emulator itself is tested with: one operator, in which a barrier may be missing (CD_PLANT_RACE), and a
// kernel whose threads part at a barrier.
#include <exception>
#include <string>

#include "adaln_cuda.h"
#include "device/launch.h"

namespace {

// Threads of one warp wait at two __syncthreads, or some of them at __syncwarp.
__global__ void diverging_kernel(bool block_barriers_only) {
    if (threadIdx.x < 16)
        __syncthreads();
    else if (block_barriers_only)
        __syncthreads();
    else
        __syncwarp();
}

}  // namespace

// adaln_modulate, fp32, of `rows` rows with one shift and one scale.
extern "C" void adaln(int64_t rows, int64_t width, const float* x, const float* shift, const float* scale, float* out,
                      float* stats) {
    cd::cuda::adaln_forward(cd::cuda::Elements{},
                            {{1, rows, width}, x, nullptr, {}, {shift, width}, {scale, width}, 1e-6f, nullptr, out, stats, false},
                            nullptr);
}

// What is said of the kernel above.
extern "C" const char* diverge(bool block_barriers_only) {
    static std::string said;
    try {
        cd::cuda::launch<&diverging_kernel>("diverging", dim3(1), 32, 0, nullptr, block_barriers_only);
    } catch (const std::exception& error) {
        said = error.what();
    }
    return said.c_str();
}
