#include "adaln.h"

#include "adaln_rows.h"
#include "common/operator.h"

namespace cd {
namespace {

// Null stays null.
template <class T>
T* from(T* start, int64_t at) {
    return start == nullptr ? nullptr : start + at;
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

// Partial column sums of every chunk of rows, `kinds` of them, each [groups, chunks, width]. What is summed up to nowhere has
// none.
struct ColumnSums {
    Layout layout;
    Scratch<float> data;

    ColumnSums(Layout where, int64_t kinds)
        : layout(where),
          data(kinds * where.groups * where.chunks_per_group() * where.width) {}

    float* kind(int64_t k) { return data.get() + k * layout.groups * layout.chunks_per_group() * layout.width; }

    // The accumulator of one chunk, cleared; null where the sums are not wanted.
    float* open(int64_t k, int64_t chunk, const float* wanted) {
        if (wanted == nullptr) return nullptr;
        float* row = kind(k) + chunk * layout.width;
        std::fill(row, row + layout.width, 0.0f);
        return row;
    }

    void finish(int64_t k, float* out) {
        if (out != nullptr) reduce_chunks(kind(k), layout.groups, layout.chunks_per_group(), layout.width, out);
    }
};

}  // namespace

template <class X, class O>
void adaln_forward(Layout layout, const X* x, Modulation shift, Modulation scale, Norm norm, O* out, float* stats) {
    const int64_t width = layout.width;
    const Pieces pieces(layout, kForwardRows);
    with_flag(streams(layout, out), [=](auto streamed) {
        constexpr bool Streamed = decltype(streamed)::value;
        const auto rows_forward = [=](auto rows, int64_t group, int64_t row) {
            const int64_t at = row * width;
            float* stat = stats + 2 * row;
            for (int r = 0; r < rows; r++) row_stats(x + at + r * width, width, norm, stat + 2 * r);
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

template <class X, class O>
void adaln_backward(Layout layout, const O* grad, const X* x, const float* stats, Modulation scale, X* dx,
                    float* dshift, float* dscale, bool rms) {
    const int64_t width = layout.width;
    const Pieces chunks(layout, kRowsPerChunk);
    ColumnSums sums(layout, dshift != nullptr ? 2 : 0);
    with_flag(streams(layout, dx), [=, &sums](auto streamed) {
        constexpr bool Streamed = decltype(streamed)::value;
        const auto gradients = [=](auto rows, int64_t group, int64_t row, float* shift_sum, float* scale_sum) {
            const int64_t at = row * width, next = at + rows * width;
            const float *stat = stats + 2 * row, *scales = scale.row(group);
            float means[2 * rows];
            rows_sums<rows>(grad + at, x + at, stat, scales, width, rms, shift_sum, scale_sum, means);
            if (dx == nullptr) return;
            rows_backward<rows, Streamed>(grad + at, x + at, stat, means, scales, width, dx + at, grad + next, x + next);
        };
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < chunks.count(); c++) {
                chunks.for_rows<kBackwardRows>(c, gradients, sums.open(0, c, dshift), sums.open(1, c, dscale));
            }
            stream_end();
        }
    });
    sums.finish(0, dshift);
    sums.finish(1, dscale);
}

template <class X, class Y, class O>
void gated_adaln_forward(Layout layout, const X* x, const Y* y, Modulation gate, Modulation shift,
                         Modulation scale, Norm norm, X* x_new, O* out, float* stats) {
    const int64_t width = layout.width;
    const Pieces pieces(layout, kForwardRows);
    with_flag(streams(layout, x_new) && streams(layout, out), [=](auto streamed) {
        constexpr bool Streamed = decltype(streamed)::value;
        const auto rows_forward = [=](auto rows, int64_t group, int64_t row, X* buffer) {
            const int64_t at = row * width, next = at + rows * width;
            const float *shifts = shift.row(group), *scales = scale.row(group);
            float* stat = stats + 2 * row;
            X* kept = Streamed ? buffer : x_new + at;
            for (int r = 0; r < rows; r++) {
                row_gate(x + at + r * width, y + at + r * width, gate.row(group), width, norm, kept + r * width,
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
            const Scratch<X> buffer(Streamed ? kForwardRows * width : 0);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < pieces.count(); p++) {
                pieces.for_rows<kForwardRows>(p, rows_forward, buffer.get());
            }
            stream_end();
        }
    });
}

template <class X, class Y, class O>
void gated_adaln_backward(Layout layout, const O* grad, const X* grad_x_new, const X* x_new, const Y* y,
                          const float* stats, Modulation gate, Modulation scale, X* dx, Y* dy, float* dgate,
                          float* dshift, float* dscale, bool rms) {
    const int64_t width = layout.width;
    const Pieces chunks(layout, kRowsPerChunk);
    ColumnSums sums(layout, dgate != nullptr ? 3 : dshift != nullptr ? 2 : 0);
    const auto run = [=, &sums](auto streamed, auto more, auto all) {
        constexpr bool Streamed = decltype(streamed)::value, More = decltype(more)::value, All = decltype(all)::value;
        const auto gradients = [=](auto rows, int64_t group, int64_t row, float* shift_sum, float* scale_sum,
                                   float* gate_sum) {
            const int64_t at = row * width, next = at + rows * width;
            const float *stat = stats + 2 * row, *scales = scale.row(group);
            float means[2 * rows];
            const X* own = More ? grad_x_new + at : x_new + at;
            const auto sweep = [&](const auto* later) {
                rows_sums<rows>(grad + at, x_new + at, stat, scales, width, rms, shift_sum, scale_sum, means, later, own);
            };
            if (y != nullptr) {
                sweep(y + at);
            } else {
                sweep(own);
            }
            rows_gated_backward<rows, Streamed, More, All>(grad + at, own, x_new + at, from(y, at), stat, means,
                                                      gate.row(group), scales, width, from(dx, at), from(dy, at), gate_sum, grad + next,
                                                      x_new + next);
        };
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < chunks.count(); c++) {
                chunks.for_rows<kBackwardRows>(c, gradients, sums.open(0, c, dshift), sums.open(1, c, dscale),
                                               sums.open(2, c, dgate));
            }
            stream_end();
        }
    };
    with_flag(streams(layout, dx) && streams(layout, dy), [&](auto streamed) {
        with_flag(grad_x_new != nullptr, [&](auto more) {
            with_flag(dx != nullptr && dy != nullptr && dgate != nullptr, [&](auto all) { run(streamed, more, all); });
        });
    });
    sums.finish(0, dshift);
    sums.finish(1, dscale);
    sums.finish(2, dgate);
}

template <class X, class Y>
void gated_residual_forward(Layout layout, const X* x, const Y* y, Modulation gate, X* out) {
    const int64_t width = layout.width;
    const Pieces pieces(layout, kForwardRows);
    with_flag(streams(layout, out), [=](auto streamed) {
        const auto rows_forward = [=](auto rows, int64_t group, int64_t row) {
            const int64_t at = row * width;
            rows_residual<rows, decltype(streamed)::value>(x + at, y + at, gate.row(group), width, out + at);
        };
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
#pragma omp for schedule(static)
            for (int64_t p = 0; p < pieces.count(); p++) pieces.for_rows<kForwardRows>(p, rows_forward);
            stream_end();
        }
    });
}

template <class X, class Y>
void gated_residual_backward(Layout layout, const X* grad, const Y* y, Modulation gate, Y* dy, float* dgate) {
    const int64_t width = layout.width;
    const Pieces chunks(layout, kRowsPerChunk);
    ColumnSums sums(layout, dgate != nullptr ? 1 : 0);
    with_flag(streams(layout, dy), [=, &sums](auto streamed) {
        const auto gradients = [=](auto rows, int64_t group, int64_t row, float* gate_sum) {
            const int64_t at = row * width;
            rows_residual_backward<rows, decltype(streamed)::value>(grad + at, from(y, at), gate.row(group), width,
                                                                    from(dy, at), gate_sum);
        };
#pragma omp parallel if (layout.elements() >= kParallelElements)
        {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < chunks.count(); c++) {
                chunks.for_rows<kBackwardRows>(c, gradients, sums.open(0, c, dgate));
            }
            stream_end();
        }
    });
    sums.finish(0, dgate);
}

template <>
struct Read<Layout> : ReadMembers<Layout, int64_t, int64_t, int64_t> {};
template <>
struct Read<Modulation> : ReadMembers<Modulation, const float*, int64_t> {};

template <>
struct Read<Norm> : ReadMembers<Norm, float, bool> {};

// An element type for each template parameter: all the same, or an fp32 residual stream with a narrow branch or result.
CD_MIXED_OPERATOR(adaln_forward, CD_SAME(2), Mix<float, bf16>, Mix<float, fp16>)
CD_MIXED_OPERATOR(adaln_backward, CD_SAME(2), Mix<float, bf16>, Mix<float, fp16>)
CD_MIXED_OPERATOR(gated_adaln_forward, CD_SAME(3), Mix<float, bf16, bf16>, Mix<float, bf16, float>, Mix<float, fp16, fp16>,
                  Mix<float, fp16, float>)
CD_MIXED_OPERATOR(gated_adaln_backward, CD_SAME(3), Mix<float, bf16, bf16>, Mix<float, bf16, float>, Mix<float, fp16, fp16>,
                  Mix<float, fp16, float>)
CD_MIXED_OPERATOR(gated_residual_forward, CD_SAME(2), Mix<float, bf16>, Mix<float, fp16>)
CD_MIXED_OPERATOR(gated_residual_backward, CD_SAME(2), Mix<float, bf16>, Mix<float, fp16>)
CD_INTERFACE(adaln, 2)

}  // namespace cd
