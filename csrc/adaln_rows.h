// The sweeps over rows that adaptive LayerNorm consists of: statistics, modulation, sums and gradients. Rows follow each
// other; see adaln.h for the rest.
#pragma once

#include <cmath>

#include "adaln.h"
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
// themselves would cancel when |mean| is large. Where they cancel even so, squares(mean) sums them again. For a root mean
// square, the origin is 0.
template <class Squares>
CD_INLINE void finish_stats(float sum, float square, float origin, int64_t n, Norm norm, Squares squares, float* stats) {
    const float count = static_cast<float>(n), off = norm.rms ? 0.0f : sum / count, mean = origin + off;
    float variance = square / count - off * off;
    if (!norm.rms && !(variance > off * off)) variance = squares(mean) / count;
    stats[0] = mean;
    stats[1] = 1.0f / std::sqrt(variance + norm.eps);
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
CD_KERNEL void row_stats(const T* CD_RESTRICT x, int64_t width, Norm norm, float* CD_RESTRICT stats) {
    const float origin = norm.rms || width < kTile ? 0.0f : sum_of(read(x)) / kTile;
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
    finish_stats(sum_of(sums) + sum, sum_of(squares) + square, origin, width, norm,
                 [=](float mean) { return row_squares(x, width, mean); }, stats);
}

// write_rounded() of what was read as As.
template <class As, bool Streamed, class T>
CD_INLINE void write_rounded_as(const Tile& v, T* to) {
    if constexpr (std::is_same_v<T, float>) {
        write_as<As, Streamed>(v, to);
    } else {
        write_rounded<Streamed>(v, to);
    }
}

// x_new = x + gate * y and its statistics.
template <class X, class Y>
CD_KERNEL void row_gate(const X* CD_RESTRICT x, const Y* CD_RESTRICT y, const float* CD_RESTRICT gate, int64_t width,
                        Norm norm, X* CD_RESTRICT x_new, float* CD_RESTRICT stats) {
    using As = Order<X, Y>;
    const auto element = [=](int64_t i) { return narrow<X>(load(x[i]) + gate[i] * load(y[i])); };
    const auto tile = [=](int64_t i) __attribute__((always_inline)) {
        return rounded<X>(read_as<As>(x + i) + read_as<As>(gate + i) * read_as<As>(y + i));
    };
    const float origin = norm.rms || width < kTile ? 0.0f : sum_of(tile(0)) / kTile;
    Tile sums(0.0f), squares(0.0f);
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        fetch(x + i + kAhead<X>);
        fetch(y + i + kAhead<Y>);
        const Tile v = tile(i), away = v - origin;
        write_rounded_as<As, false>(v, x_new + i);
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
    finish_stats(sum_of(sums) + sum, sum_of(squares) + square, origin, width, norm,
                 [=](float mean) { return row_squares(x_new, width, mean); }, stats);
}

// Of floats or vectors of them, like everything else that is written once for both.
template <class V>
CD_INLINE V modulated(V x, const float* stats, V factor, V shift) {
    return (x - V(stats[0])) * V(stats[1]) * factor + shift;
}

// `copy`, unless null, gets the rows as they are: reading and writing at the same time suits the memory better than
// writing them in a sweep that only reads otherwise. `next` is fetched.
template <int Rows, bool Streamed, class X, class O, class Copy, class... Next>
CD_KERNEL void rows_modulate(const X* CD_RESTRICT x, const float* CD_RESTRICT stats, const float* CD_RESTRICT shift,
                             const float* CD_RESTRICT scale, int64_t width, O* CD_RESTRICT out, Copy copy,
                             const Next*... next) {
    constexpr bool kCopied = !std::is_null_pointer_v<Copy>;
    using As = Order<X, O>;
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile factor = read_as<As>(scale + i) + Tile(1.0f), add = read_as<As>(shift + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if (Streamed) (fetch(next + at), ...);
            const Tile v = read_as<As>(x + at);
            if constexpr (kCopied) write_rounded_as<As, Streamed>(v, copy + at);
            write_as<As, Streamed>(modulated(v, stats + 2 * r, factor, add), out + at);
        }
    }
    for (; i < width; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if constexpr (kCopied) copy[at] = x[at];
            out[at] = narrow<O>(modulated(load(x[at]), stats + 2 * r, 1.0f + scale[i], shift[i]));
        }
    }
}

// With n = grad * (1 + scale) of each row: means[0] = mean(n), 0 where rms, means[1] = mean(n * xhat). The column sums of the
// rows are added to dshift and dscale on the way, unless these are null, and `next` is fetched: what the sweep after this one
// reads besides.
template <int Rows, class G, class X, class... Next>
CD_KERNEL void rows_sums(const G* CD_RESTRICT grad, const X* CD_RESTRICT x, const float* CD_RESTRICT stats,
                         const float* CD_RESTRICT scale, int64_t width, bool rms, float* CD_RESTRICT dshift,
                         float* CD_RESTRICT dscale, float* CD_RESTRICT means, const Next*... next) {
    using As = Order<G, X>;
    const auto sweep = [=](auto summed) __attribute__((always_inline)) {
        constexpr bool Summed = decltype(summed)::value;
        Tile sums[Rows], dots[Rows];
        for (int r = 0; r < Rows; r++) sums[r] = dots[r] = 0.0f;
        int64_t i = 0;
        for (; i + kTile <= width; i += kTile) {
            const Tile factor = read_as<As>(scale + i) + Tile(1.0f);
            Tile shift_sum, scale_sum;
            if constexpr (Summed) shift_sum = read_as<As>(dshift + i), scale_sum = read_as<As>(dscale + i);
#pragma GCC unroll 4
            for (int r = 0; r < Rows; r++) {
                const int64_t at = r * width + i;
                (fetch(next + at), ...);
                if (sizeof...(next) == 0) fetch(grad + at + kAgain<G>), fetch(x + at + kAgain<X>);
                const Tile g = read_as<As>(grad + at);
                const Tile hat = (read_as<As>(x + at) - stats[2 * r]) * stats[2 * r + 1], n = g * factor;
                sums[r] += n;
                dots[r] += n * hat;
                if constexpr (Summed) {
                    shift_sum += g;
                    scale_sum += g * hat;
                }
            }
            if constexpr (Summed) {
                write_as<As>(shift_sum, dshift + i);
                write_as<As>(scale_sum, dscale + i);
            }
        }
        for (int r = 0; r < Rows; r++) {
            float sum = 0.0f, dot = 0.0f;
            for (int64_t k = i; k < width; k++) {
                const float g = load(grad[r * width + k]), n = g * (1.0f + scale[k]);
                const float hat = (load(x[r * width + k]) - stats[2 * r]) * stats[2 * r + 1];
                sum += n;
                dot += n * hat;
                if constexpr (Summed) {
                    dshift[k] += g;
                    dscale[k] += g * hat;
                }
            }
            means[2 * r] = rms ? 0.0f : (sum_of(sums[r]) + sum) / static_cast<float>(width);
            means[2 * r + 1] = (sum_of(dots[r]) + dot) / static_cast<float>(width);
        }
    };
    if (dshift != nullptr) {
        sweep(std::true_type{});
    } else {
        sweep(std::false_type{});
    }
}

// rstd * (n - mean(n) - xhat * mean(n * xhat)), the gradient of one element.
template <class V>
CD_INLINE V normed_gradient(V grad, V x, V factor, const float* stats, const float* means) {
    return V(stats[1]) * (grad * factor - V(means[0]) - (x - V(stats[0])) * V(stats[1]) * V(means[1]));
}

template <int Rows, bool Streamed, class G, class X>
CD_KERNEL void rows_backward(const G* CD_RESTRICT grad, const X* CD_RESTRICT x, const float* CD_RESTRICT stats,
                             const float* CD_RESTRICT means, const float* CD_RESTRICT scale, int64_t width,
                             X* CD_RESTRICT dx, const G* next_grad, const X* next_x) {
    using As = Order<G, X>;
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile factor = read_as<As>(scale + i) + Tile(1.0f);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if (Streamed) fetch(next_grad + at), fetch(next_x + at);
            const Tile d = normed_gradient(read_as<As>(grad + at), read_as<As>(x + at), factor, stats + 2 * r, means + 2 * r);
            write_as<As, Streamed>(d, dx + at);
        }
    }
    for (; i < width; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            dx[at] = narrow<X>(
                normed_gradient(load(grad[at]), load(x[at]), 1.0f + scale[i], stats + 2 * r, means + 2 * r));
        }
    }
}

// The same for x_new = x + gate * y, which has a gradient of its own (More) or not. What is null of dx, dy and dgate is left
// out, nothing where All.
template <int Rows, bool Streamed, bool More, bool All, class G, class X, class Y>
CD_KERNEL void rows_gated_backward(const G* CD_RESTRICT grad, const X* CD_RESTRICT grad_x_new,
                                   const X* CD_RESTRICT x_new, const Y* CD_RESTRICT y, const float* CD_RESTRICT stats,
                                   const float* CD_RESTRICT means, const float* CD_RESTRICT gate,
                                   const float* CD_RESTRICT scale, int64_t width, X* CD_RESTRICT dx, Y* CD_RESTRICT dy,
                                   float* CD_RESTRICT dgate, const G* next_grad, const X* next_x_new) {
    using As = Order<G, X, Y>;
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile factor = read_as<As>(scale + i) + Tile(1.0f), gates = read_as<As>(gate + i);
        Tile sum(0.0f);
        if (All || dgate != nullptr) sum = read_as<As>(dgate + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if (Streamed) fetch(next_grad + at), fetch(next_x_new + at);
            Tile d = normed_gradient(read_as<As>(grad + at), read_as<As>(x_new + at), factor, stats + 2 * r, means + 2 * r);
            if (More) d += read_as<As>(grad_x_new + at);
            if (All || dx != nullptr) write_as<As, Streamed>(d, dx + at);
            if (All || dy != nullptr) write_as<As, Streamed>(gates * d, dy + at);
            if (All || dgate != nullptr) sum += d * read_as<As>(y + at);
        }
        if (All || dgate != nullptr) write_as<As>(sum, dgate + i);
    }
    for (; i < width; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            float d = normed_gradient(load(grad[at]), load(x_new[at]), 1.0f + scale[i], stats + 2 * r, means + 2 * r);
            if (More) d += load(grad_x_new[at]);
            if (All || dx != nullptr) dx[at] = narrow<X>(d);
            if (All || dy != nullptr) dy[at] = narrow<Y>(gate[i] * d);
            if (All || dgate != nullptr) dgate[i] += d * load(y[at]);
        }
    }
}

// out = x + gate * y.
template <int Rows, bool Streamed, class X, class Y>
CD_KERNEL void rows_residual(const X* CD_RESTRICT x, const Y* CD_RESTRICT y, const float* CD_RESTRICT gate, int64_t width,
                             X* CD_RESTRICT out) {
    using As = Order<X, Y>;
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile gates = read_as<As>(gate + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            fetch(x + at + kAhead<X>), fetch(y + at + kAhead<Y>);
            write_as<As, Streamed>(read_as<As>(x + at) + gates * read_as<As>(y + at), out + at);
        }
    }
    for (; i < width; i++) {
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            out[at] = narrow<X>(load(x[at]) + gate[i] * load(y[at]));
        }
    }
}

// dy = gate * grad, and dgate is added to; what is null is left out.
template <int Rows, bool Streamed, class X, class Y>
CD_KERNEL void rows_residual_backward(const X* CD_RESTRICT grad, const Y* CD_RESTRICT y, const float* CD_RESTRICT gate,
                                      int64_t width, Y* CD_RESTRICT dy, float* CD_RESTRICT dgate) {
    using As = Order<X, Y>;
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile gates = read_as<As>(gate + i);
        Tile sum(0.0f);
        if (dgate != nullptr) sum = read_as<As>(dgate + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            fetch(grad + at + kAhead<X>);
            const Tile g = read_as<As>(grad + at);
            if (dy != nullptr) write_as<As, Streamed>(gates * g, dy + at);
            if (dgate != nullptr) {
                fetch(y + at + kAhead<Y>);
                sum += g * read_as<As>(y + at);
            }
        }
        if (dgate != nullptr) write_as<As>(sum, dgate + i);
    }
    for (; i < width; i++) {
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if (dy != nullptr) dy[at] = narrow<Y>(gate[i] * load(grad[at]));
            if (dgate != nullptr) dgate[i] += load(grad[at]) * load(y[at]);
        }
    }
}

}  // namespace cd
