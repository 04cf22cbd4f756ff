// What CPU kernels share. Every source is compiled once per instruction set (CMakeLists.txt), into a module of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "common/element.h"

// A loop over rows or a block, compiled by itself: the compiler then keeps its values in registers whatever is around it,
// and what it costs (benchmarks/instructions.py) is a matter of its own text.
#if defined(__clang__)
#define CD_KERNEL __attribute__((noinline))
#elif defined(__GNUC__)
#define CD_KERNEL __attribute__((noipa))
#else
#define CD_KERNEL
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

// Scratch memory that is not cleared: the kernels write it before they read it. It starts with a cache line: a vector that
// is stored across two of them takes twice as long, and longer still when it is read again.
template <class T>
class Scratch {
  public:
    explicit Scratch(int64_t n)
        : memory(new char[static_cast<size_t>(n) * sizeof(T) + kLine]),
          first(reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.get()) + kLine - 1) / kLine * kLine)) {}
    T* get() const { return first; }

  private:
    static constexpr size_t kLine = 64;
    std::unique_ptr<char[]> memory;
    T* first;
};

// out[g] = sum over the group's chunks of partial[g, chunk], in the order of the chunks.
void reduce_chunks(const float* partial, int64_t groups, int64_t chunks, int64_t width, float* out);

}  // namespace cd
