#include "adaln.h"

#include <cmath>

namespace cd {
namespace {

// Mean and 1/std of one row, in two sweeps: the one-sweep form E[x^2] - E[x]^2 cancels when |mean| is large.
CD_CLONES void row_stats(const float* CD_RESTRICT x, int64_t width, float eps, float* stats) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += x[i];
    const float mean = sum / static_cast<float>(width);
    float square = 0.0f;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
    stats[0] = mean;
    stats[1] = 1.0f / std::sqrt(square / static_cast<float>(width) + eps);
}

CD_CLONES void row_gate(const float* CD_RESTRICT x, const float* CD_RESTRICT y, const float* CD_RESTRICT gate,
                        int64_t width, float* CD_RESTRICT x_new) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) x_new[i] = x[i] + gate[i] * y[i];
}

CD_CLONES void row_modulate(const float* CD_RESTRICT x, const float* CD_RESTRICT stats,
                            const float* CD_RESTRICT shift, const float* CD_RESTRICT scale, int64_t width,
                            float* CD_RESTRICT out) {
    const float mean = stats[0], rstd = stats[1];
#pragma omp simd
    for (int64_t i = 0; i < width; i++) out[i] = (x[i] - mean) * rstd * (1.0f + scale[i]) + shift[i];
}

// dx = rstd * (n - mean(n) - xhat * mean(n * xhat)) with n = grad * (1 + scale); the column sums of this
// row are added to dshift and dscale on the way, while the row is in cache.
CD_CLONES void row_backward(const float* CD_RESTRICT grad, const float* CD_RESTRICT x,
                            const float* CD_RESTRICT stats, const float* CD_RESTRICT scale, int64_t width,
                            float* CD_RESTRICT dx, float* CD_RESTRICT dshift, float* CD_RESTRICT dscale) {
    const float mean = stats[0], rstd = stats[1];
    float sum = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t i = 0; i < width; i++) {
        const float hat = (x[i] - mean) * rstd, n = grad[i] * (1.0f + scale[i]);
        sum += n;
        dot += n * hat;
        dshift[i] += grad[i];
        dscale[i] += grad[i] * hat;
    }
    const float a = sum / static_cast<float>(width), b = dot / static_cast<float>(width);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        const float hat = (x[i] - mean) * rstd, n = grad[i] * (1.0f + scale[i]);
        dx[i] = rstd * (n - a - hat * b);
    }
}

CD_CLONES void row_add(const float* CD_RESTRICT from, float* CD_RESTRICT to, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) to[i] += from[i];
}

CD_CLONES void row_gate_backward(const float* CD_RESTRICT dx, const float* CD_RESTRICT y,
                                 const float* CD_RESTRICT gate, int64_t width, float* CD_RESTRICT dy,
                                 float* CD_RESTRICT dgate) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        dy[i] = gate[i] * dx[i];
        dgate[i] += dx[i] * y[i];
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

void adaln_forward(Layout layout, const float* x, Modulation shift, Modulation scale, float eps, float* out,
                   float* stats) {
    const int64_t rows = layout.rows, width = layout.width;
#pragma omp parallel for schedule(static) if (layout.elements() >= kParallelElements)
    for (int64_t r = 0; r < layout.groups * rows; r++) {
        row_stats(x + r * width, width, eps, stats + 2 * r);
        row_modulate(x + r * width, stats + 2 * r, shift.row(r / rows), scale.row(r / rows), width,
                     out + r * width);
    }
}

void adaln_backward(Layout layout, const float* grad, const float* x, const float* stats, Modulation scale,
                    float* dx, float* dshift, float* dscale) {
    const int64_t rows = layout.rows, width = layout.width, chunks = layout.chunks_per_group();
    ColumnSums sums(layout, 2);
#pragma omp parallel for schedule(static) if (layout.elements() >= kParallelElements)
    for (int64_t c = 0; c < layout.groups * chunks; c++) {
        const int64_t group = c / chunks, first = c % chunks * kRowsPerChunk;
        float *shift_sum = sums.open(0, c), *scale_sum = sums.open(1, c);
        for (int64_t i = first; i < std::min(rows, first + kRowsPerChunk); i++) {
            const int64_t r = group * rows + i;
            row_backward(grad + r * width, x + r * width, stats + 2 * r, scale.row(group), width,
                         dx + r * width, shift_sum, scale_sum);
        }
    }
    sums.finish(0, dshift);
    sums.finish(1, dscale);
}

void gated_adaln_forward(Layout layout, const float* x, const float* y, Modulation gate, Modulation shift,
                         Modulation scale, float eps, float* x_new, float* out, float* stats) {
    const int64_t rows = layout.rows, width = layout.width;
#pragma omp parallel for schedule(static) if (layout.elements() >= kParallelElements)
    for (int64_t r = 0; r < layout.groups * rows; r++) {
        const int64_t group = r / rows, at = r * width;
        row_gate(x + at, y + at, gate.row(group), width, x_new + at);
        row_stats(x_new + at, width, eps, stats + 2 * r);
        row_modulate(x_new + at, stats + 2 * r, shift.row(group), scale.row(group), width, out + at);
    }
}

void gated_adaln_backward(Layout layout, const float* grad, const float* grad_x_new, const float* x_new,
                          const float* y, const float* stats, Modulation gate, Modulation scale, float* dx,
                          float* dy, float* dgate, float* dshift, float* dscale) {
    const int64_t rows = layout.rows, width = layout.width, chunks = layout.chunks_per_group();
    ColumnSums sums(layout, 3);
#pragma omp parallel for schedule(static) if (layout.elements() >= kParallelElements)
    for (int64_t c = 0; c < layout.groups * chunks; c++) {
        const int64_t group = c / chunks, first = c % chunks * kRowsPerChunk;
        float *shift_sum = sums.open(0, c), *scale_sum = sums.open(1, c), *gate_sum = sums.open(2, c);
        for (int64_t i = first; i < std::min(rows, first + kRowsPerChunk); i++) {
            const int64_t r = group * rows + i, at = r * width;
            row_backward(grad + at, x_new + at, stats + 2 * r, scale.row(group), width, dx + at, shift_sum,
                         scale_sum);
            if (grad_x_new != nullptr) row_add(grad_x_new + at, dx + at, width);
            row_gate_backward(dx + at, y + at, gate.row(group), width, dy + at, gate_sum);
        }
    }
    sums.finish(0, dshift);
    sums.finish(1, dscale);
    sums.finish(2, dgate);
}

}  // namespace cd
