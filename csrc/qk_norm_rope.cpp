#include "qk_norm_rope.h"

#include <cmath>

namespace cd {
namespace {

// One token: every head shares the token's tables. Null tables only normalise.
CD_CLONES void token_forward(const float* CD_RESTRICT x, const float* CD_RESTRICT weight,
                             const float* CD_RESTRICT cos, const float* CD_RESTRICT sin, int64_t heads,
                             int64_t dim, float eps, float* CD_RESTRICT out, float* CD_RESTRICT rstd) {
    const int64_t half = dim / 2;
    for (int64_t h = 0; h < heads; h++, x += dim, out += dim) {
        float square = 0.0f;
#pragma omp simd reduction(+ : square)
        for (int64_t i = 0; i < dim; i++) square += x[i] * x[i];
        const float r = 1.0f / std::sqrt(square / static_cast<float>(dim) + eps);
        rstd[h] = r;
        if (cos == nullptr) {
#pragma omp simd
            for (int64_t i = 0; i < dim; i++) out[i] = x[i] * r * weight[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                const float a = x[i] * r * weight[i], b = x[i + half] * r * weight[i + half];
                out[i] = a * cos[i] - b * sin[i];
                out[i + half] = b * cos[i + half] + a * sin[i + half];
            }
        }
    }
}

// dn is the gradient before the rotation (the rotation transposed), n = x * r * weight:
// dx = r * (dn * weight - x * r * mean(dn * weight * x * r)), dweight += dn * x * r.
CD_CLONES void token_backward(const float* CD_RESTRICT grad, const float* CD_RESTRICT x,
                              const float* CD_RESTRICT rstd, const float* CD_RESTRICT weight,
                              const float* CD_RESTRICT cos, const float* CD_RESTRICT sin, int64_t heads,
                              int64_t dim, float* CD_RESTRICT dx, float* CD_RESTRICT dweight) {
    const int64_t half = dim / 2;
    for (int64_t h = 0; h < heads; h++, grad += dim, x += dim, dx += dim) {
        const float r = rstd[h];
        // dx holds dn until the mean is known: the row is in cache, a buffer of its own would not be better.
        if (cos == nullptr) {
#pragma omp simd
            for (int64_t i = 0; i < dim; i++) dx[i] = grad[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                dx[i] = grad[i] * cos[i] + grad[i + half] * sin[i + half];
                dx[i + half] = grad[i + half] * cos[i + half] - grad[i] * sin[i];
            }
        }
        float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < dim; i++) {
            const float share = dx[i] * x[i] * r;
            dweight[i] += share;
            dot += share * weight[i];
        }
        const float mean = dot / static_cast<float>(dim);
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) dx[i] = r * (dx[i] * weight[i] - x[i] * r * mean);
    }
}

struct Row {
    const float* cos;
    const float* sin;
};

Row table_row(const Heads& shape, const Tables& tables, int64_t token) {
    if (tables.cos == nullptr) return {nullptr, nullptr};
    const int64_t at = (tables.per_sample ? token : token % shape.length) * shape.head_dim;
    return {tables.cos + at, tables.sin + at};
}

}  // namespace

void norm_rope_forward(Heads shape, const float* x, const float* weight, Tables tables, float eps, float* out,
                       float* rstd) {
    const int64_t size = shape.token();
#pragma omp parallel for schedule(static) if (shape.tokens() * size >= kParallelElements)
    for (int64_t t = 0; t < shape.tokens(); t++) {
        const Row row = table_row(shape, tables, t);
        token_forward(x + t * shape.stride, weight, row.cos, row.sin, shape.heads, shape.head_dim, eps,
                      out + t * size, rstd + t * shape.heads);
    }
}

void norm_rope_backward(Heads shape, const float* grad, const float* x, const float* rstd, const float* weight,
                        Tables tables, float* dx, float* dweight) {
    const int64_t size = shape.token(), dim = shape.head_dim;
    const int64_t chunks = (shape.tokens() + kRowsPerChunk - 1) / kRowsPerChunk;
    const auto partial = scratch<float>(chunks * dim);
#pragma omp parallel for schedule(static) if (shape.tokens() * size >= kParallelElements)
    for (int64_t c = 0; c < chunks; c++) {
        float* sum = partial.get() + c * dim;
        std::fill(sum, sum + dim, 0.0f);
        const int64_t last = std::min(shape.tokens(), (c + 1) * kRowsPerChunk);
        for (int64_t t = c * kRowsPerChunk; t < last; t++) {
            const Row row = table_row(shape, tables, t);
            token_backward(grad + t * size, x + t * shape.stride, rstd + t * shape.heads, weight, row.cos,
                           row.sin, shape.heads, dim, dx + t * size, sum);
        }
    }
    reduce_chunks(partial.get(), 1, chunks, dim, dweight);
}

}  // namespace cd
