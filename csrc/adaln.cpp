#include "adaln.h"

#include "adaln_rows.h"
#include "common/operator.h"

namespace cd {
namespace {

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

    // Calls run(rows, group, first row, more...) for the piece, `Most` rows at a time and single ones; `rows` is a constant.
    template <int Most, class Run, class... More>
    void for_rows(int64_t piece, Run run, More... more) const {
        const int64_t group = piece / per_group, begin = group * layout.rows;
        int64_t r = begin + piece % per_group * length;
        const int64_t end = std::min(begin + layout.rows, r + length);
        for (; r + Most <= end; r += Most) run(std::integral_constant<int, Most>{}, group, r, more...);
        for (; r < end; r++) run(std::integral_constant<int, 1>{}, group, r, more...);
    }
};

// Partial column sums of every chunk of rows, `kinds` of them, each [groups, chunks, width].
struct ColumnSums {
    Layout layout;
    Scratch<float> data;

    ColumnSums(Layout where, int64_t kinds)
        : layout(where),
          data(kinds * where.groups * where.chunks_per_group() * where.width) {}

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
            rows_modulate<rows, Streamed>(x + at, stat, shift.row(group), scale.row(group), width, out + at, nullptr,
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
        const auto gradients = [=](auto rows, int64_t group, int64_t row, float* shift_sum, float* scale_sum) {
            const int64_t at = row * width, next = at + rows * width;
            const float *stat = stats + 2 * row, *scales = scale.row(group);
            float means[2 * rows];
            rows_sums<rows>(grad + at, x + at, stat, scales, width, shift_sum, scale_sum, means);
            rows_backward<rows, Streamed>(grad + at, x + at, stat, means, scales, width, dx + at, grad + next, x + next);
        };
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < chunks.count(); c++) {
                chunks.for_rows<kBackwardRows>(c, gradients, sums.open(0, c), sums.open(1, c));
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
            const int64_t at = row * width, next = at + rows * width;
            const float *shifts = shift.row(group), *scales = scale.row(group);
            float* stat = stats + 2 * row;
            T* kept = Streamed ? buffer : x_new + at;
            for (int r = 0; r < rows; r++) {
                row_gate(x + at + r * width, y + at + r * width, gate.row(group), width, eps, kept + r * width,
                         stat + 2 * r);
            }
            if constexpr (Streamed) {
                rows_modulate<rows, true>(kept, stat, shifts, scales, width, out + at, x_new + at, x + next, y + next);
            } else {
                rows_modulate<rows, false>(kept, stat, shifts, scales, width, out + at, nullptr);
            }
        };
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
            const Scratch<T> buffer(Streamed ? kForwardRows * width : 0);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < pieces.count(); p++) {
                pieces.for_rows<kForwardRows>(p, rows_forward, buffer.get());
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
        const auto gradients = [=](auto rows, int64_t group, int64_t row, float* shift_sum, float* scale_sum,
                                   float* gate_sum) {
            const int64_t at = row * width, next = at + rows * width;
            const float *stat = stats + 2 * row, *scales = scale.row(group);
            const T* own = More ? grad_x_new + at : y + at;
            float means[2 * rows];
            rows_sums<rows>(grad + at, x_new + at, stat, scales, width, shift_sum, scale_sum, means, y + at, own);
            rows_gated_backward<rows, Streamed, More>(grad + at, own, x_new + at, y + at, stat, means, gate.row(group),
                                                      scales, width, dx + at, dy + at, gate_sum, grad + next,
                                                      x_new + next);
        };
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < chunks.count(); c++) {
                chunks.for_rows<kBackwardRows>(c, gradients, sums.open(0, c), sums.open(1, c), sums.open(2, c));
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

template <>
struct Read<Layout> : ReadMembers<Layout, int64_t, int64_t, int64_t> {};
template <>
struct Read<Modulation> : ReadMembers<Modulation, const float*, int64_t> {};

CD_OPERATOR(adaln_forward)
CD_OPERATOR(adaln_backward)
CD_OPERATOR(gated_adaln_forward)
CD_OPERATOR(gated_adaln_backward)

}  // namespace cd
