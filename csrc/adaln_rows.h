// The sweeps over rows that adaptive LayerNorm consists of: statistics, modulation, sums and gradients. Rows follow each
// other; see adaln.h for the rest.
#pragma once

#include <cmath>

#include "common/tile.h"

namespace cd {

// Rows of one group that go through a sweep together, so that one reading of the modulation serves them all: as many
// as the caches bear beside the rows that are fetched meanwhile.
constexpr int kForwardRows = 4;
constexpr int kBackwardRows = 2;

// How far ahead of a sweep that reads from memory its elements are fetched: across the page that a prefetcher stops at.
template <class T>
constexpr int64_t kAhead = 4096 / sizeof(T);

// The same for rows that the sweep before has fetched: what it asked for while the queue to memory was full was dropped.
template <class T>
constexpr int64_t kAgain = 2048 / sizeof(T);

// Mean and 1/std from the sums of what n elements are away from `origin`, and of its squares: those of the elements
// themselves would cancel when |mean| is large. Where they cancel even so, squares(mean) sums them again.
template <class Squares>
CD_INLINE void finish_stats(float sum, float square, float origin, int64_t n, float eps, Squares squares,
                            float* stats) {
    const float count = static_cast<float>(n), off = sum / count, mean = origin + off;
    float variance = square / count - off * off;
    if (!(variance > off * off)) variance = squares(mean) / count;
    stats[0] = mean;
    stats[1] = 1.0f / std::sqrt(variance + eps);
}

// The sum of (x - mean)^2 over a row.
template <class T>
CD_KERNEL float row_squares(const T* CD_RESTRICT x, int64_t width, float mean) {
    Tile squares(0.0f);
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile away = read(x + i) - mean;
        squares += away * away;
    }
    float square = 0.0f;  // of the rest alone: among small numbers less is rounded away
    for (; i < width; i++) {
        const float away = load(x[i]) - mean;
        square += away * away;
    }
    return sum_of(squares) + square;
}

template <class T>
CD_KERNEL void row_stats(const T* CD_RESTRICT x, int64_t width, float eps, float* CD_RESTRICT stats) {
    const float origin = width < kTile ? 0.0f : sum_of(read(x)) / kTile;
    Tile sums(0.0f), squares(0.0f);
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        fetch(x + i + kAhead<T>);
        const Tile away = read(x + i) - origin;
        sums += away;
        squares += away * away;
    }
    float sum = 0.0f, square = 0.0f;
    for (; i < width; i++) {
        const float away = load(x[i]) - origin;
        sum += away;
        square += away * away;
    }
    finish_stats(sum_of(sums) + sum, sum_of(squares) + square, origin, width, eps,
                 [=](float mean) { return row_squares(x, width, mean); }, stats);
}

// x_new = x + gate * y and its statistics.
template <class T>
CD_KERNEL void row_gate(const T* CD_RESTRICT x, const T* CD_RESTRICT y, const float* CD_RESTRICT gate, int64_t width,
                        float eps, T* CD_RESTRICT x_new, float* CD_RESTRICT stats) {
    const auto element = [=](int64_t i) { return narrow<T>(load(x[i]) + gate[i] * load(y[i])); };
    const auto tile = [=](int64_t i) __attribute__((always_inline)) {
        return rounded<T>(read(x + i) + read_as<T>(gate + i) * read(y + i));
    };
    const float origin = width < kTile ? 0.0f : sum_of(tile(0)) / kTile;
    Tile sums(0.0f), squares(0.0f);
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        fetch(x + i + kAhead<T>);
        fetch(y + i + kAhead<T>);
        const Tile v = tile(i), away = v - origin;
        write_rounded<false>(v, x_new + i);
        sums += away;
        squares += away * away;
    }
    float sum = 0.0f, square = 0.0f;
    for (; i < width; i++) {
        x_new[i] = element(i);
        const float away = load(x_new[i]) - origin;
        sum += away;
        square += away * away;
    }
    finish_stats(sum_of(sums) + sum, sum_of(squares) + square, origin, width, eps,
                 [=](float mean) { return row_squares(x_new, width, mean); }, stats);
}

// Of floats or vectors of them, like everything else that is written once for both.
template <class V>
CD_INLINE V modulated(V x, const float* stats, V factor, V shift) {
    return (x - V(stats[0])) * V(stats[1]) * factor + shift;
}

// `copy`, unless null, gets the rows as they are: reading and writing at the same time suits the memory better than
// writing them in a sweep that only reads otherwise. `next` is fetched.
template <int Rows, bool Streamed, class T, class Copy, class... Next>
CD_KERNEL void rows_modulate(const T* CD_RESTRICT x, const float* CD_RESTRICT stats, const float* CD_RESTRICT shift,
                             const float* CD_RESTRICT scale, int64_t width, T* CD_RESTRICT out, Copy copy,
                             const Next*... next) {
    constexpr bool kCopied = !std::is_null_pointer_v<Copy>;
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile factor = read_as<T>(scale + i) + Tile(1.0f), add = read_as<T>(shift + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if (Streamed) (fetch(next + at), ...);
            const Tile v = read(x + at);
            if constexpr (kCopied) write_rounded<Streamed>(v, copy + at);
            write<Streamed>(modulated(v, stats + 2 * r, factor, add), out + at);
        }
    }
    for (; i < width; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if constexpr (kCopied) copy[at] = x[at];
            out[at] = narrow<T>(modulated(load(x[at]), stats + 2 * r, 1.0f + scale[i], shift[i]));
        }
    }
}

// With n = grad * (1 + scale) of each row: means[0] = mean(n), means[1] = mean(n * xhat). The column sums of the rows
// are added to dshift and dscale on the way, and `next` is fetched: what the sweep after this one reads besides.
template <int Rows, class T, class... Next>
CD_KERNEL void rows_sums(const T* CD_RESTRICT grad, const T* CD_RESTRICT x, const float* CD_RESTRICT stats,
                         const float* CD_RESTRICT scale, int64_t width, float* CD_RESTRICT dshift,
                         float* CD_RESTRICT dscale, float* CD_RESTRICT means, const Next*... next) {
    Tile sums[Rows], dots[Rows];
    for (int r = 0; r < Rows; r++) sums[r] = dots[r] = 0.0f;
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile factor = read_as<T>(scale + i) + Tile(1.0f);
        Tile shift_sum = read_as<T>(dshift + i), scale_sum = read_as<T>(dscale + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            (fetch(next + at), ...);
            if (sizeof...(next) == 0) fetch(grad + at + kAgain<T>), fetch(x + at + kAgain<T>);
            const Tile g = read(grad + at), hat = (read(x + at) - stats[2 * r]) * stats[2 * r + 1], n = g * factor;
            sums[r] += n;
            dots[r] += n * hat;
            shift_sum += g;
            scale_sum += g * hat;
        }
        write_as<T>(shift_sum, dshift + i);
        write_as<T>(scale_sum, dscale + i);
    }
    for (int r = 0; r < Rows; r++) {
        float sum = 0.0f, dot = 0.0f;
        for (int64_t k = i; k < width; k++) {
            const float g = load(grad[r * width + k]), n = g * (1.0f + scale[k]);
            const float hat = (load(x[r * width + k]) - stats[2 * r]) * stats[2 * r + 1];
            sum += n;
            dot += n * hat;
            dshift[k] += g;
            dscale[k] += g * hat;
        }
        means[2 * r] = (sum_of(sums[r]) + sum) / static_cast<float>(width);
        means[2 * r + 1] = (sum_of(dots[r]) + dot) / static_cast<float>(width);
    }
}

// rstd * (n - mean(n) - xhat * mean(n * xhat)), the gradient of one element.
template <class V>
CD_INLINE V normed_gradient(V grad, V x, V factor, const float* stats, const float* means) {
    return V(stats[1]) * (grad * factor - V(means[0]) - (x - V(stats[0])) * V(stats[1]) * V(means[1]));
}

template <int Rows, bool Streamed, class T>
CD_KERNEL void rows_backward(const T* CD_RESTRICT grad, const T* CD_RESTRICT x, const float* CD_RESTRICT stats,
                             const float* CD_RESTRICT means, const float* CD_RESTRICT scale, int64_t width,
                             T* CD_RESTRICT dx, const T* next_grad, const T* next_x) {
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile factor = read_as<T>(scale + i) + Tile(1.0f);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if (Streamed) fetch(next_grad + at), fetch(next_x + at);
            write<Streamed>(normed_gradient(read(grad + at), read(x + at), factor, stats + 2 * r, means + 2 * r),
                            dx + at);
        }
    }
    for (; i < width; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            dx[at] = narrow<T>(
                normed_gradient(load(grad[at]), load(x[at]), 1.0f + scale[i], stats + 2 * r, means + 2 * r));
        }
    }
}

// The same for x_new = x + gate * y, which has a gradient of its own (More) or not.
template <int Rows, bool Streamed, bool More, class T>
CD_KERNEL void rows_gated_backward(const T* CD_RESTRICT grad, const T* CD_RESTRICT grad_x_new,
                                   const T* CD_RESTRICT x_new, const T* CD_RESTRICT y, const float* CD_RESTRICT stats,
                                   const float* CD_RESTRICT means, const float* CD_RESTRICT gate,
                                   const float* CD_RESTRICT scale, int64_t width, T* CD_RESTRICT dx, T* CD_RESTRICT dy,
                                   float* CD_RESTRICT dgate, const T* next_grad, const T* next_x_new) {
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile factor = read_as<T>(scale + i) + Tile(1.0f), gates = read_as<T>(gate + i);
        Tile sum = read_as<T>(dgate + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if (Streamed) fetch(next_grad + at), fetch(next_x_new + at);
            Tile d = normed_gradient(read(grad + at), read(x_new + at), factor, stats + 2 * r, means + 2 * r);
            if (More) d += read(grad_x_new + at);
            write<Streamed>(d, dx + at);
            write<Streamed>(gates * d, dy + at);
            sum += d * read(y + at);
        }
        write_as<T>(sum, dgate + i);
    }
    for (; i < width; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            float d = normed_gradient(load(grad[at]), load(x_new[at]), 1.0f + scale[i], stats + 2 * r, means + 2 * r);
            if (More) d += load(grad_x_new[at]);
            dx[at] = narrow<T>(d);
            dy[at] = narrow<T>(gate[i] * d);
            dgate[i] += d * load(y[at]);
        }
    }
}

}  // namespace cd
