// How CPU kernels are compiled and threaded: loops over a row in functions compiled once per instruction set and picked
// when the module is loaded. The OpenMP loop over rows stays outside such a function: the compiler does not clone the
// outlined body of a parallel region.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/element.h"

#if defined(CD_CLONES)
// The builder has chosen one instruction set for everything.
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define CD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CD_CLONES
#endif
#define CD_RESTRICT __restrict__

namespace cd {

// Below this many elements, waking the other threads costs more than they save.
constexpr int64_t kParallelElements = 16384;

// Rows whose column sums one thread adds up alone. It depends on nothing but this number, so that sums
// over rows are added in the same order whatever the number of threads.
constexpr int64_t kRowsPerChunk = 32;

// Rows of a modulated tensor: group g owns rows g * rows .. (g + 1) * rows - 1 and one row of modulation.
struct Layout {
    int64_t groups;
    int64_t rows;
    int64_t width;

    int64_t chunks_per_group() const { return (rows + kRowsPerChunk - 1) / kRowsPerChunk; }
    int64_t elements() const { return groups * rows * width; }
};

// Scratch memory that is not cleared: the kernels write it before they read it.
template <class T>
std::unique_ptr<T[]> scratch(int64_t n) {
    return std::unique_ptr<T[]>(new T[static_cast<size_t>(n)]);
}

// out[g] = sum over the group's chunks of partial[g, chunk], in the order of the chunks.
void reduce_chunks(const float* partial, int64_t groups, int64_t chunks, int64_t width, float* out);

}  // namespace cd
