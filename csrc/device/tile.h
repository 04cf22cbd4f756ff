// Tiles of rows in shared memory for matrix instructions, 16-bit elements.
#pragma once

#include "device/tensor_core.h"

namespace cd::cuda {

// A tile's row is kDim elements, cut into pieces of 16 bytes. Row r keeps piece c at place c ^ (r % 8): eight rows'
// pieces of one column, which ldmatrix reads together, then lie in different banks.
template <int kDim>
CD_DEVICE int tile_offset(int row, int piece) {
    return row * kDim + ((piece ^ (row & 7)) << 3);
}

// Rows `first` .. first + kRows of a matrix with `rows` rows of `dim` <= kDim elements, `stride` apart, on their
// way to a tile. What is not there is zero. All kThreads of the block take part.
template <int kDim, int kRows, int kThreads, class T>
CD_DEVICE void load_tile(T* tile, const T* matrix, int64_t stride, int first, int rows, int dim) {
    constexpr int kPieces = kDim / 8;
    static_assert(kRows * kPieces % kThreads == 0, "every thread copies as many pieces");
#pragma unroll
    for (int i = 0; i < kRows * kPieces / kThreads; i++) {
        const int at = i * kThreads + static_cast<int>(threadIdx.x), row = at / kPieces, piece = at % kPieces;
        const bool present = first + row < rows && piece * 8 < dim;
        const T* const from = matrix + (present ? (first + row) * stride + piece * 8 : 0);
        copy_async(tile + tile_offset<kDim>(row, piece), from, present);
    }
}

// One of `tiles` tiles is there for the whole block, and the next one, if there is one, on its way: `load` starts the
// copies of one tile and commits them.
template <class Load>
CD_DEVICE void await_tile(int tile, int tiles, const Load& load) {
    if (tile + 1 < tiles) {
        load(tile + 1);
        wait_copies<1>();
    } else {
        wait_copies<0>();
    }
    __syncthreads();
}

// The fragment of a for rows `row` .. row + 16 and elements 16 k .. 16 k + 16 of a tile.
template <int kDim, class T>
CD_DEVICE void load_a(uint32_t (&a)[4], const T* tile, int row, int k, int lane) {
    ldmatrix<false>(a, tile + tile_offset<kDim>(row + (lane & 15), 2 * k + (lane >> 4)));
}

// Two fragments of b, whose columns are rows `row` .. row + 16 of a tile, along elements 16 k .. 16 k + 16.
template <int kDim, class T>
CD_DEVICE void load_b_rows(uint32_t (&b)[4], const T* tile, int row, int k, int lane) {
    ldmatrix<false>(b, tile + tile_offset<kDim>(row + (lane & 7) + ((lane >> 4) << 3), 2 * k + ((lane >> 3) & 1)));
}

// Two fragments of b, whose rows are rows `row` .. row + 16 of a tile and whose columns are elements 16 n .. 16 n + 16.
template <int kDim, class T>
CD_DEVICE void load_b_columns(uint32_t (&b)[4], const T* tile, int row, int n, int lane) {
    ldmatrix<true>(b, tile + tile_offset<kDim>(row + (lane & 15), 2 * n + (lane >> 4)));
}

// The lane's part of a product of 16 rows, in steps of 8 columns: of columns 8 n + 2 (lane % 4) and the next, the
// first two are for row lane / 4 and the last two for row lane / 4 + 8.
template <int kColumns>
using Product = float[kColumns / 8][4];

template <int kCount>
CD_DEVICE void clear(float (&x)[kCount][4]) {
#pragma unroll
    for (int n = 0; n < kCount; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) x[n][j] = 0.0f;
}

// Columns are numbered from `first`: those from `end` on get `value`.
template <int kCount>
CD_DEVICE void fill_missing(float (&x)[kCount][4], int first, int end, float value, int lane) {
    if (first + 8 * kCount <= end) return;
#pragma unroll
    for (int n = 0; n < kCount; n++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (first + n * 8 + lane % 4 * 2 + j % 2 >= end) x[n][j] = value;
}

// out += left (elements 16 k .. 16 k + 16) times the same elements of the first 8 kCount rows of tile `right`,
// transposed.
template <class T, int kDim, int kCount>
CD_DEVICE void multiply_step(float (&out)[kCount][4], const uint32_t (&left)[4], const T* right, int k, int lane) {
#pragma unroll
    for (int n = 0; n < kCount / 2; n++) {
        uint32_t b[4];
        load_b_rows<kDim>(b, right, n * 16, k, lane);
        mma<T>(out[2 * n], left, b[0], b[1]);
        mma<T>(out[2 * n + 1], left, b[2], b[3]);
    }
}

// out += rows `row` .. row + 16 of tile `left` times the first 8 kCount rows of tile `right`, transposed.
template <class T, int kDim, int kCount>
CD_DEVICE void multiply_transposed(float (&out)[kCount][4], const T* left, int row, const T* right, int lane) {
#pragma unroll
    for (int k = 0; k < kDim / 16; k++) {
        uint32_t a[4];
        load_a<kDim>(a, left, row, k, lane);
        multiply_step<T, kDim>(out, a, right, k, lane);
    }
}

// out (16 x kDim) += left (a product, rounded to T) times the first 8 kCount rows of tile `right`.
template <class T, int kDim, int kCount>
CD_DEVICE void multiply_product(float (&out)[kDim / 8][4], const float (&left)[kCount][4], const T* right, int lane) {
#pragma unroll
    for (int k = 0; k < kCount / 2; k++) {
        const auto &first = left[2 * k], &second = left[2 * k + 1];
        const uint32_t a[4] = {narrow_pair<T>(first[0], first[1]), narrow_pair<T>(first[2], first[3]),
                               narrow_pair<T>(second[0], second[1]), narrow_pair<T>(second[2], second[3])};
#pragma unroll
        for (int n = 0; n < kDim / 16; n++) {
            uint32_t b[4];
            load_b_columns<kDim>(b, right, k * 16, n, lane);
            mma<T>(out[2 * n], a, b[0], b[1]);
            mma<T>(out[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// The product, its rows times the lane's two factors, to rows `row` .. row + 16 of a matrix.
template <class T, int kCount>
CD_DEVICE void store_rows(T* matrix, int64_t stride, int row, int rows, int dim, const float (&product)[kCount][4],
                          float upper, float lower, int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int r = row + lane / 4 + h * 8;
        const float factor = h == 0 ? upper : lower;
        if (r >= rows) continue;
#pragma unroll
        for (int n = 0; n < kCount; n++)
            if (n * 8 < dim)
                *reinterpret_cast<uint32_t*>(matrix + r * stride + n * 8 + lane % 4 * 2) =
                    narrow_pair<T>(product[n][2 * h] * factor, product[n][2 * h + 1] * factor);
    }
}

}  // namespace cd::cuda
