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

// The cosines and sines of one token, head_dim of each. A factored table is put together in `space`.
struct Row {
    const float* cos;
    const float* sin;
    std::vector<float> space;

    explicit Row(const Heads& shape) : cos(nullptr), sin(nullptr), space(2 * shape.head_dim) {}

    void read(const Heads& shape, const Tables& tables, int64_t token) {
        if (tables.cos == nullptr) return;
        if (!tables.factored()) {
            const int64_t at = (tables.per_sample ? token : token % shape.length) * shape.head_dim;
            cos = tables.cos + at;
            sin = tables.sin + at;
            return;
        }
        const int64_t sample = tables.per_sample ? token / shape.length : 0, n = token % shape.length;
        const int64_t t = n / (tables.height * tables.width), h = n / tables.width % tables.height,
                      w = n % tables.width;
        float *to_cos = space.data(), *to_sin = space.data() + shape.head_dim;
        gather(tables.cos + sample * tables.length(), tables, t, h, w, to_cos);
        gather(tables.sin + sample * tables.length(), tables, t, h, w, to_sin);
        cos = to_cos;
        sin = to_sin;
    }

    static void gather(const float* from, const Tables& tables, int64_t t, int64_t h, int64_t w, float* to) {
        const int64_t half = tables.t + tables.h + tables.w;
        const float* at_h = from + tables.frames * tables.t;
        const float* at_w = at_h + tables.height * tables.h;
        std::copy_n(from + t * tables.t, tables.t, to);
        std::copy_n(at_h + h * tables.h, tables.h, to + tables.t);
        std::copy_n(at_w + w * tables.w, tables.w, to + tables.t + tables.h);
        std::copy_n(to, half, to + half);
    }
};

}  // namespace

void norm_rope_forward(Heads shape, const float* x, const float* weight, Tables tables, float eps, float* out,
                       float* rstd) {
    const int64_t size = shape.token();
#pragma omp parallel if (shape.tokens() * size >= kParallelElements)
    {
        Row row(shape);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < shape.tokens(); t++) {
            row.read(shape, tables, t);
            token_forward(x + t * shape.stride, weight, row.cos, row.sin, shape.heads, shape.head_dim, eps,
                          out + t * size, rstd + t * shape.heads);
        }
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
        Row row(shape);
        const int64_t last = std::min(shape.tokens(), (c + 1) * kRowsPerChunk);
        for (int64_t t = c * kRowsPerChunk; t < last; t++) {
            row.read(shape, tables, t);
            token_backward(grad + t * size, x + t * shape.stride, rstd + t * shape.heads, weight, row.cos,
                           row.sin, shape.heads, dim, dx + t * size, sum);
        }
    }
    reduce_chunks(partial.get(), 1, chunks, dim, dweight);
}

}  // namespace cd
