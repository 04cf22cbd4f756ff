// From what is known when a function is called to the template that does the work.
#pragma once

#include <initializer_list>
#include <stdexcept>

#include "device/call.h"
#include "device/numbers.h"

namespace cd::cuda {

// Calls `run` with a zero of the dtype's type. Throws std::invalid_argument if there is none.
template <class Run>
void with_type(Dtype dtype, Run run) {
    switch (dtype) {
        case Dtype::fp32: return run(float{});
        case Dtype::bf16: return run(bf16{});
        case Dtype::fp16: return run(fp16{});
    }
    throw std::invalid_argument("dtype must be 0 (fp32), 1 (bf16) or 2 (fp16)");
}

template <int value>
struct Constant {
    static constexpr int kValue = value;
};

// Calls `run` with the number of elements of T that can be moved at once: 16 bytes of them if that divides
// `width` and all addresses and distances between rows (in bytes) are multiples of 16, else one.
template <class T, class Run>
void with_width(int64_t width, std::initializer_list<uintptr_t> places, Run run) {
    bool wide = width % kWide<T> == 0;
    for (const uintptr_t place : places) wide = wide && place % 16 == 0;
    if (wide)
        run(Constant<kWide<T>>{});
    else
        run(Constant<1>{});
}

inline uintptr_t place(const void* address) { return reinterpret_cast<uintptr_t>(address); }

// Threads for `items` pieces of work in a row: whole warps, no more than 256.
inline unsigned threads_for(int64_t items) {
    const int64_t warps = (items + 31) / 32;
    return 32 * static_cast<unsigned>(warps < 1 ? 1 : warps > 8 ? 8 : warps);
}

}  // namespace cd::cuda
