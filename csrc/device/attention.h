// What the kernels of attention share. A block of four warps works on 64 rows, 16 a warp, of one head. Kernels are
// made for two blocks a multiprocessor: as many registers as that leaves, and tiles of no more than 80 KiB.
#pragma once

#include <stdexcept>

#include "attention_cuda.h"
#include "common/operator.h"
#include "device/dispatch.h"
#include "device/tile.h"

namespace cd::cuda {

constexpr int kAttentionThreads = 128, kAttentionRows = 64;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Where a thread is. Samples follow each other along the grid's first axis, each with the blocks of one head next to
// each other: the other axes end at 65,535, fewer than a batch may have samples.
struct Place {
    int first, head, sample, warp, lane;
    CD_DEVICE explicit Place(const Attention& call)
        : head(static_cast<int>(blockIdx.y)), warp(static_cast<int>(threadIdx.x) / 32),
          lane(static_cast<int>(threadIdx.x) % 32) {
        const unsigned blocks = gridDim.x / static_cast<unsigned>(call.batch);
        first = static_cast<int>(blockIdx.x % blocks) * kAttentionRows;
        sample = static_cast<int>(blockIdx.x / blocks);
    }
    // The head's rows.
    template <class T>
    CD_DEVICE T* of(const Strided& x) const {
        return static_cast<T*>(x.data) + sample * x.batch + head * x.head;
    }
    // The head's first element in [batch, heads, rows].
    CD_DEVICE int64_t of(const Attention& call, int rows) const {
        return (static_cast<int64_t>(sample) * call.heads + head) * rows;
    }
};

// The sum over, and the maximum of, the four lanes that share the rows of a product.
CD_DEVICE float row_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

CD_DEVICE float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

inline dim3 attention_grid(int rows, const Attention& call) {
    const int64_t blocks = (rows + kAttentionRows - 1) / kAttentionRows;
    return dim3(static_cast<unsigned>(blocks * call.batch), static_cast<unsigned>(call.heads));
}

// Calls `run` with a zero of the dtype's type and the width of the tiles that hold a head: missing elements are zero.
template <class Run>
void with_head(Dtype dtype, const Attention& call, Run run) {
    if (call.dim % 8 != 0 || call.dim > 128) throw std::invalid_argument("head size must be a multiple of 8 up to 128");
    if (call.queries == 0 || call.keys == 0) throw std::invalid_argument("there must be queries and keys");
    const auto of_type = [&](auto zero) {
        if (call.dim <= 64)
            run(zero, Constant<64>{});
        else
            run(zero, Constant<128>{});
    };
    if (dtype == Dtype::bf16) return of_type(bf16{});
    if (dtype == Dtype::fp16) return of_type(fp16{});
    throw std::invalid_argument("dtype must be 1 (bf16) or 2 (fp16)");
}

}  // namespace cd::cuda

namespace cd {

// A list of the address, and the distances between samples, rows and heads.
template <>
struct Read<cuda::Strided> : ReadList<cuda::Strided, void*, int64_t, int64_t, int64_t> {};

// What both directions have: a list of batch, heads, queries, keys and head size, and the scale.
template <>
struct Read<cuda::Attention> {
    static cuda::Attention from(Arguments& in) {
        const auto sizes = in.next<std::vector<int64_t>>();
        const auto at = [&](size_t i) { return static_cast<int>(sizes.at(i)); };
        cuda::Attention call{};
        call.batch = at(0);
        call.heads = at(1);
        call.queries = at(2);
        call.keys = at(3);
        call.dim = at(4);
        call.scale = in.next<float>();
        return call;
    }
};

}  // namespace cd
