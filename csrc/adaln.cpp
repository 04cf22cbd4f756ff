#include "adaln.h"

#include <cmath>

#include "common/vector.h"

namespace cd {
namespace {

// Rows of one group that go through a sweep together, so that one reading of the modulation serves them all: as many
// as the caches bear beside the rows that are fetched meanwhile.
constexpr int kForwardRows = 4;
constexpr int kBackwardRows = 2;

// How far ahead of a sweep that reads from memory its elements are fetched: across the page that a prefetcher stops at.
template <class T>
constexpr int64_t kAhead = 4096 / sizeof(T);

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
CD_CLONES float row_squares(const T* CD_RESTRICT x, int64_t width, float mean) {
    Tile squares(0.0f);
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile away = read(x + i) - mean;
        squares += away * away;
    }
    float square = sum_of(squares);
    for (; i < width; i++) {
        const float away = load(x[i]) - mean;
        square += away * away;
    }
    return square;
}

template <class T>
CD_CLONES void row_stats(const T* CD_RESTRICT x, int64_t width, float eps, float* CD_RESTRICT stats) {
    const float origin = width < kTile ? load(x[0]) : sum_of(read(x)) / kTile;
    Tile sums(0.0f), squares(0.0f);
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        fetch(x + i + kAhead<T>);
        const Tile away = read(x + i) - origin;
        sums += away;
        squares += away * away;
    }
    float sum = sum_of(sums), square = sum_of(squares);
    for (; i < width; i++) {
        const float away = load(x[i]) - origin;
        sum += away;
        square += away * away;
    }
    finish_stats(sum, square, origin, width, eps, [=](float mean) { return row_squares(x, width, mean); }, stats);
}

// x_new = x + gate * y and its statistics. A streamed x_new is also kept, to be read again at once.
template <bool Streamed, class T>
CD_CLONES void row_gate(const T* CD_RESTRICT x, const T* CD_RESTRICT y, const float* CD_RESTRICT gate, int64_t width,
                        float eps, T* CD_RESTRICT x_new, T* CD_RESTRICT kept, float* CD_RESTRICT stats) {
    const auto element = [=](int64_t i) { return narrow<T>(load(x[i]) + gate[i] * load(y[i])); };
    const auto tile = [=](int64_t i) __attribute__((always_inline)) {
        return rounded<T>(read(x + i) + read_as<T>(gate + i) * read(y + i));
    };
    const float origin = width < kTile ? load(element(0)) : sum_of(tile(0)) / kTile;
    Tile sums(0.0f), squares(0.0f);
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        fetch(x + i + kAhead<T>);
        fetch(y + i + kAhead<T>);
        const Tile v = tile(i), away = v - origin;
        if (Streamed) write_rounded<true>(v, x_new + i);
        write_rounded<false>(v, kept + i);
        sums += away;
        squares += away * away;
    }
    float sum = sum_of(sums), square = sum_of(squares);
    for (; i < width; i++) {
        kept[i] = element(i);
        if (Streamed) x_new[i] = kept[i];
        const float away = load(kept[i]) - origin;
        sum += away;
        square += away * away;
    }
    finish_stats(sum, square, origin, width, eps, [=](float mean) { return row_squares(kept, width, mean); }, stats);
}

// Of floats or vectors of them, like everything else that is written once for both.
template <class V>
CD_INLINE V modulated(V x, const float* stats, V factor, V shift) {
    return (x - V(stats[0])) * V(stats[1]) * factor + shift;
}

template <int Rows, bool Streamed, class T, class... Next>
CD_CLONES void rows_modulate(const T* CD_RESTRICT x, const float* CD_RESTRICT stats, const float* CD_RESTRICT shift,
                             const float* CD_RESTRICT scale, int64_t width, T* CD_RESTRICT out, const Next*... next) {
    int64_t i = 0;
    for (; i + kTile <= width; i += kTile) {
        const Tile factor = read_as<T>(scale + i) + Tile(1.0f), add = read_as<T>(shift + i);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            if (Streamed) (fetch(next + at), ...);
            write<Streamed>(modulated(read(x + at), stats + 2 * r, factor, add), out + at);
        }
    }
    for (; i < width; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; r++) {
            const int64_t at = r * width + i;
            out[at] = narrow<T>(modulated(load(x[at]), stats + 2 * r, 1.0f + scale[i], shift[i]));
        }
    }
}

// With n = grad * (1 + scale) of each row: means[0] = mean(n), means[1] = mean(n * xhat). The column sums of the rows
// are added to dshift and dscale on the way, and `next` is fetched: what the sweep after this one reads besides.
template <int Rows, class T, class... Next>
CD_CLONES void rows_sums(const T* CD_RESTRICT grad, const T* CD_RESTRICT x, const float* CD_RESTRICT stats,
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
        float sum = sum_of(sums[r]), dot = sum_of(dots[r]);
        for (int64_t k = i; k < width; k++) {
            const float g = load(grad[r * width + k]), n = g * (1.0f + scale[k]);
            const float hat = (load(x[r * width + k]) - stats[2 * r]) * stats[2 * r + 1];
            sum += n;
            dot += n * hat;
            dshift[k] += g;
            dscale[k] += g * hat;
        }
        means[2 * r] = sum / static_cast<float>(width);
        means[2 * r + 1] = dot / static_cast<float>(width);
    }
}

// rstd * (n - mean(n) - xhat * mean(n * xhat)), the gradient of one element.
template <class V>
CD_INLINE V normed_gradient(V grad, V x, V factor, const float* stats, const float* means) {
    return V(stats[1]) * (grad * factor - V(means[0]) - (x - V(stats[0])) * V(stats[1]) * V(means[1]));
}

template <int Rows, bool Streamed, class T>
CD_CLONES void rows_backward(const T* CD_RESTRICT grad, const T* CD_RESTRICT x, const float* CD_RESTRICT stats,
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
CD_CLONES void rows_gated_backward(const T* CD_RESTRICT grad, const T* CD_RESTRICT grad_x_new,
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


template <class T>
bool streams(const Layout& layout, const T* result) {
    return cd::streams(result, layout.elements(), layout.width);
}

// The rows of all groups in pieces of so many.
struct Pieces {
    Layout layout;
    int64_t length, per_group;

    Pieces(const Layout& rows, int64_t n) : layout(rows), length(n), per_group((rows.rows + n - 1) / n) {}
    int64_t count() const { return layout.groups * per_group; }

    // Calls run(rows, group, first row) for the piece, `Most` rows at a time and single ones; `rows` is a constant.
    template <int Most, class Run>
    void for_rows(int64_t piece, Run run) const {
        const int64_t group = piece / per_group, begin = group * layout.rows;
        int64_t r = begin + piece % per_group * length;
        const int64_t end = std::min(begin + layout.rows, r + length);
        for (; r + Most <= end; r += Most) run(std::integral_constant<int, Most>{}, group, r);
        for (; r < end; r++) run(std::integral_constant<int, 1>{}, group, r);
    }
};

// Partial column sums of every chunk of rows, `kinds` of them, each [groups, chunks, width].
struct ColumnSums {
    Layout layout;
    std::unique_ptr<float[]> data;

    ColumnSums(Layout where, int64_t kinds)
        : layout(where),
          data(scratch<float>(kinds * where.groups * where.chunks_per_group() * where.width)) {}

    float* kind(int64_t k) { return data.get() + k * layout.groups * layout.chunks_per_group() * layout.width; }

    // The accumulator of one chunk, cleared.
    float* open(int64_t k, int64_t chunk) {
        float* row = kind(k) + chunk * layout.width;
        std::fill(row, row + layout.width, 0.0f);
        return row;
    }

    void finish(int64_t k, float* out) {
        reduce_chunks(kind(k), layout.groups, layout.chunks_per_group(), layout.width, out);
    }
};

}  // namespace

template <class T>
void adaln_forward(Layout layout, const T* x, Modulation shift, Modulation scale, float eps, T* out,
                   float* stats) {
    const int64_t width = layout.width;
    const Pieces pieces(layout, kForwardRows);
    with_flag(streams(layout, out), [=](auto streamed) {
        constexpr bool Streamed = decltype(streamed)::value;
        const auto rows_forward = [=](auto rows, int64_t group, int64_t row) {
            const int64_t at = row * width;
            float* stat = stats + 2 * row;
            for (int r = 0; r < rows; r++) row_stats(x + at + r * width, width, eps, stat + 2 * r);
            rows_modulate<rows, Streamed>(x + at, stat, shift.row(group), scale.row(group), width, out + at,
                                          x + at + rows * width);
        };
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
#pragma omp for schedule(static)
            for (int64_t p = 0; p < pieces.count(); p++) pieces.for_rows<kForwardRows>(p, rows_forward);
            stream_end();
        }
    });
}

template <class T>
void adaln_backward(Layout layout, const T* grad, const T* x, const float* stats, Modulation scale, T* dx,
                    float* dshift, float* dscale) {
    const int64_t width = layout.width;
    const Pieces chunks(layout, kRowsPerChunk);
    ColumnSums sums(layout, 2);
    with_flag(streams(layout, dx), [=, &sums](auto streamed) {
        constexpr bool Streamed = decltype(streamed)::value;
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < chunks.count(); c++) {
                float *shift_sum = sums.open(0, c), *scale_sum = sums.open(1, c);
                chunks.for_rows<kBackwardRows>(c, [=](auto rows, int64_t group, int64_t row) {
                    const int64_t at = row * width, next = at + rows * width;
                    const float *stat = stats + 2 * row, *scales = scale.row(group);
                    float means[2 * rows];
                    rows_sums<rows>(grad + at, x + at, stat, scales, width, shift_sum, scale_sum, means);
                    rows_backward<rows, Streamed>(grad + at, x + at, stat, means, scales, width, dx + at, grad + next,
                                                  x + next);
                });
            }
            stream_end();
        }
    });
    sums.finish(0, dshift);
    sums.finish(1, dscale);
}

template <class T>
void gated_adaln_forward(Layout layout, const T* x, const T* y, Modulation gate, Modulation shift,
                         Modulation scale, float eps, T* x_new, T* out, float* stats) {
    const int64_t width = layout.width;
    const Pieces pieces(layout, kForwardRows);
    with_flag(streams(layout, x_new) && streams(layout, out), [=](auto streamed) {
        constexpr bool Streamed = decltype(streamed)::value;
        const auto rows_forward = [=](auto rows, int64_t group, int64_t row, T* buffer) {
            const int64_t at = row * width;
            float* stat = stats + 2 * row;
            T* kept = Streamed ? buffer : x_new + at;
            for (int r = 0; r < rows; r++) {
                const int64_t from = at + r * width;
                row_gate<Streamed>(x + from, y + from, gate.row(group), width, eps, x_new + from, kept + r * width,
                                   stat + 2 * r);
            }
            rows_modulate<rows, Streamed>(kept, stat, shift.row(group), scale.row(group), width, out + at);
        };
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
            const auto buffer = scratch<T>(Streamed ? kForwardRows * width : 0);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < pieces.count(); p++) {
                pieces.for_rows<kForwardRows>(
                    p, [&](auto rows, int64_t group, int64_t row) { rows_forward(rows, group, row, buffer.get()); });
            }
            stream_end();
        }
    });
}

template <class T>
void gated_adaln_backward(Layout layout, const T* grad, const T* grad_x_new, const T* x_new, const T* y,
                          const float* stats, Modulation gate, Modulation scale, T* dx, T* dy, float* dgate,
                          float* dshift, float* dscale) {
    const int64_t width = layout.width;
    const Pieces chunks(layout, kRowsPerChunk);
    ColumnSums sums(layout, 3);
    const auto run = [=, &sums](auto streamed, auto more) {
        constexpr bool Streamed = decltype(streamed)::value, More = decltype(more)::value;
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < chunks.count(); c++) {
                float *shift_sum = sums.open(0, c), *scale_sum = sums.open(1, c), *gate_sum = sums.open(2, c);
                chunks.for_rows<kBackwardRows>(c, [=](auto rows, int64_t group, int64_t row) {
                    const int64_t at = row * width, next = at + rows * width;
                    const float *stat = stats + 2 * row, *scales = scale.row(group);
                    const T* own = More ? grad_x_new + at : y + at;
                    float means[2 * rows];
                    rows_sums<rows>(grad + at, x_new + at, stat, scales, width, shift_sum, scale_sum, means, y + at,
                                    own);
                    rows_gated_backward<rows, Streamed, More>(grad + at, own, x_new + at, y + at, stat, means,
                                                              gate.row(group), scales, width, dx + at, dy + at,
                                                              gate_sum, grad + next, x_new + next);
                });
            }
            stream_end();
        }
    };
    with_flag(streams(layout, dx) && streams(layout, dy), [&](auto streamed) {
        with_flag(grad_x_new != nullptr, [&](auto more) { run(streamed, more); });
    });
    sums.finish(0, dshift);
    sums.finish(1, dscale);
    sums.finish(2, dgate);
}

#define CD_INSTANTIATE(T)                                                                                        \
    template void adaln_forward(Layout, const T*, Modulation, Modulation, float, T*, float*);                    \
    template void adaln_backward(Layout, const T*, const T*, const float*, Modulation, T*, float*, float*);      \
    template void gated_adaln_forward(Layout, const T*, const T*, Modulation, Modulation, Modulation, float, T*, \
                                      T*, float*);                                                               \
    template void gated_adaln_backward(Layout, const T*, const T*, const T*, const T*, const float*, Modulation, \
                                       Modulation, T*, T*, float*, float*, float*);
CD_FOR_ELEMENTS(CD_INSTANTIATE)

}  // namespace cd
