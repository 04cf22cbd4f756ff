#include "adaln.h"

#include <cmath>

#include "common/stream.h"

namespace cd {
namespace {

// Mean and 1/std of one row, in two sweeps: the one-sweep form E[x^2] - E[x]^2 cancels when |mean| is large.
CD_CLONES void row_stats(const float* CD_RESTRICT x, int64_t width, float eps, float* stats) {
    const float mean = lane_sum(width, [=](int64_t i) { return x[i]; }) / static_cast<float>(width);
    const float square = lane_sum(width, [=](int64_t i) {
        const float away = x[i] - mean;
        return away * away;
    });
    stats[0] = mean;
    stats[1] = 1.0f / std::sqrt(square / static_cast<float>(width) + eps);
}

template <class T>
CD_CLONES void row_gate(const T* CD_RESTRICT x, const T* CD_RESTRICT y, const float* CD_RESTRICT gate,
                        int64_t width, T* CD_RESTRICT x_new) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) x_new[i] = narrow<T>(load(x[i]) + gate[i] * load(y[i]));
}

template <class T>
CD_CLONES void row_modulate(const float* CD_RESTRICT x, const float* CD_RESTRICT stats,
                            const float* CD_RESTRICT shift, const float* CD_RESTRICT scale, int64_t width,
                            T* CD_RESTRICT out) {
    const float mean = stats[0], rstd = stats[1];
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        out[i] = narrow<T>((x[i] - mean) * rstd * (1.0f + scale[i]) + shift[i]);
    }
}

// With n = grad * (1 + scale): means[0] = mean(n), means[1] = mean(n * xhat). The column sums of this row are
// added to dshift and dscale on the way.
CD_CLONES void row_sums(const float* CD_RESTRICT grad, const float* CD_RESTRICT x, const float* CD_RESTRICT stats,
                        const float* CD_RESTRICT scale, int64_t width, float* CD_RESTRICT dshift,
                        float* CD_RESTRICT dscale, float* CD_RESTRICT means) {
    const float mean = stats[0], rstd = stats[1];
    float sum = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t i = 0; i < width; i++) {
        const float g = grad[i], hat = (x[i] - mean) * rstd, n = g * (1.0f + scale[i]);
        sum += n;
        dot += n * hat;
        dshift[i] += g;
        dscale[i] += g * hat;
    }
    means[0] = sum / static_cast<float>(width);
    means[1] = dot / static_cast<float>(width);
}

// rstd * (n - mean(n) - xhat * mean(n * xhat)), the gradient of one element.
CD_INLINE float normed_gradient(float grad, float x, float scale, float mean, float rstd, float a, float b) {
    return rstd * (grad * (1.0f + scale) - a - (x - mean) * rstd * b);
}

template <class T>
CD_CLONES void row_backward(const float* CD_RESTRICT grad, const float* CD_RESTRICT x,
                            const float* CD_RESTRICT stats, const float* CD_RESTRICT means,
                            const float* CD_RESTRICT scale, int64_t width, T* CD_RESTRICT dx) {
    const float mean = stats[0], rstd = stats[1], a = means[0], b = means[1];
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        dx[i] = narrow<T>(normed_gradient(grad[i], x[i], scale[i], mean, rstd, a, b));
    }
}

// The same for x_new = x + gate * y, which has a gradient of its own (or not: null).
template <class T>
CD_CLONES void row_gated_backward(const float* CD_RESTRICT grad, const T* CD_RESTRICT grad_x_new,
                                  const float* CD_RESTRICT x_new, const T* CD_RESTRICT y,
                                  const float* CD_RESTRICT stats, const float* CD_RESTRICT means,
                                  const float* CD_RESTRICT gate, const float* CD_RESTRICT scale, int64_t width,
                                  T* CD_RESTRICT dx, T* CD_RESTRICT dy, float* CD_RESTRICT dgate) {
    const float mean = stats[0], rstd = stats[1], a = means[0], b = means[1];
    const auto finish = [=](int64_t i, float d) {
        dx[i] = narrow<T>(d);
        dy[i] = narrow<T>(gate[i] * d);
        dgate[i] += d * load(y[i]);
    };
    if (grad_x_new == nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            finish(i, normed_gradient(grad[i], x_new[i], scale[i], mean, rstd, a, b));
        }
    } else {
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            const float d = normed_gradient(grad[i], x_new[i], scale[i], mean, rstd, a, b);
            finish(i, d + load(grad_x_new[i]));
        }
    }
}

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
    const int64_t rows = layout.rows, width = layout.width;
#pragma omp parallel if (layout.elements() >= kParallelElements)
    {
        RowReader<T> from(width);
        RowWriter<T> to(out, layout.elements(), width);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < layout.groups * rows; r++) {
            const int64_t group = r / rows, at = r * width;
            const float* row = from.read(x + at);
            row_stats(row, width, eps, stats + 2 * r);
            row_modulate(row, stats + 2 * r, shift.row(group), scale.row(group), width, to.row(at));
            to.done(at, width, x + at + width);
        }
    }
}

template <class T>
void adaln_backward(Layout layout, const T* grad, const T* x, const float* stats, Modulation scale, T* dx,
                    float* dshift, float* dscale) {
    const int64_t rows = layout.rows, width = layout.width, chunks = layout.chunks_per_group();
    ColumnSums sums(layout, 2);
#pragma omp parallel if (layout.elements() >= kParallelElements)
    {
        RowReader<T> from_grad(width), from_x(width);
        RowWriter<T> to(dx, layout.elements(), width);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < layout.groups * chunks; c++) {
            const int64_t group = c / chunks, first = c % chunks * kRowsPerChunk;
            const float* scales = scale.row(group);
            float *shift_sum = sums.open(0, c), *scale_sum = sums.open(1, c), means[2];
            for (int64_t i = first; i < std::min(rows, first + kRowsPerChunk); i++) {
                const int64_t r = group * rows + i, at = r * width;
                const float *grads = from_grad.read(grad + at), *row = from_x.read(x + at);
                row_sums(grads, row, stats + 2 * r, scales, width, shift_sum, scale_sum, means);
                row_backward(grads, row, stats + 2 * r, means, scales, width, to.row(at));
                to.done(at, width, grad + at + width, x + at + width);
            }
        }
    }
    sums.finish(0, dshift);
    sums.finish(1, dscale);
}

template <class T>
void gated_adaln_forward(Layout layout, const T* x, const T* y, Modulation gate, Modulation shift,
                         Modulation scale, float eps, T* x_new, T* out, float* stats) {
    const int64_t rows = layout.rows, width = layout.width;
#pragma omp parallel if (layout.elements() >= kParallelElements)
    {
        RowReader<T> from(width);
        RowWriter<T> to_x_new(x_new, layout.elements(), width), to_out(out, layout.elements(), width);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < layout.groups * rows; r++) {
            const int64_t group = r / rows, at = r * width;
            T* sum = to_x_new.row(at);
            row_gate(x + at, y + at, gate.row(group), width, sum);
            const float* row = from.read(sum);
            row_stats(row, width, eps, stats + 2 * r);
            row_modulate(row, stats + 2 * r, shift.row(group), scale.row(group), width, to_out.row(at));
            to_x_new.done(at, width, x + at + width);
            to_out.done(at, width, y + at + width);
        }
    }
}

template <class T>
void gated_adaln_backward(Layout layout, const T* grad, const T* grad_x_new, const T* x_new, const T* y,
                          const float* stats, Modulation gate, Modulation scale, T* dx, T* dy, float* dgate,
                          float* dshift, float* dscale) {
    const int64_t rows = layout.rows, width = layout.width, chunks = layout.chunks_per_group();
    ColumnSums sums(layout, 3);
#pragma omp parallel if (layout.elements() >= kParallelElements)
    {
        RowReader<T> from_grad(width), from_x(width);
        RowWriter<T> to_dx(dx, layout.elements(), width), to_dy(dy, layout.elements(), width);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < layout.groups * chunks; c++) {
            const int64_t group = c / chunks, first = c % chunks * kRowsPerChunk;
            const float *scales = scale.row(group), *gates = gate.row(group);
            float *shift_sum = sums.open(0, c), *scale_sum = sums.open(1, c), *gate_sum = sums.open(2, c), means[2];
            for (int64_t i = first; i < std::min(rows, first + kRowsPerChunk); i++) {
                const int64_t r = group * rows + i, at = r * width;
                const float *grads = from_grad.read(grad + at), *row = from_x.read(x_new + at);
                const T* more = grad_x_new == nullptr ? nullptr : grad_x_new + at;
                row_sums(grads, row, stats + 2 * r, scales, width, shift_sum, scale_sum, means);
                row_gated_backward(grads, more, row, y + at, stats + 2 * r, means, gates, scales, width,
                                   to_dx.row(at), to_dy.row(at), gate_sum);
                to_dx.done(at, width, grad + at + width, x_new + at + width);
                if (more == nullptr) {
                    to_dy.done(at, width, y + at + width);
                } else {
                    to_dy.done(at, width, y + at + width, more + width);
                }
            }
        }
    }
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
