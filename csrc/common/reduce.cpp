#include "common/kernel.h"

namespace cd {

CD_KERNEL static void add_row(const float* CD_RESTRICT from, float* CD_RESTRICT to, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) to[i] += from[i];
}

void reduce_chunks(const float* partial, int64_t groups, int64_t chunks, int64_t width, float* out) {
    // Columns are split too, so that a single group (batch 1) keeps every thread busy.
    constexpr int64_t kBlock = 512;
    const int64_t blocks = (width + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (groups * chunks * width >= kParallelElements)
    for (int64_t task = 0; task < groups * blocks; task++) {
        const int64_t g = task / blocks, first = task % blocks * kBlock;
        const int64_t n = std::min(kBlock, width - first);
        float* sum = out + g * width + first;
        std::fill(sum, sum + n, 0.0f);
        for (int64_t c = 0; c < chunks; c++) add_row(partial + (g * chunks + c) * width + first, sum, n);
    }
}

}  // namespace cd
