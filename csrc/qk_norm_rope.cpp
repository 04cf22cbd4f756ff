#include "qk_norm_rope.h"

#include <cmath>
#include <type_traits>

#include "common/stream.h"

namespace cd {
namespace {

// Calls run(dim), as a constant for the head sizes in use: short loops are faster when their length is known.
template <class Run>
CD_INLINE void with_head_dim(int64_t dim, Run run) {
    if (dim == 128) {
        run(std::integral_constant<int64_t, 128>{});
    } else if (dim == 64) {
        run(std::integral_constant<int64_t, 64>{});
    } else {
        run(dim);
    }
}

// The angle of channel i stands at i, that of channel i + dim / 2 `other` further. Null tables only normalise.
template <class T>
CD_INLINE void head_forward(const float* CD_RESTRICT x, const float* CD_RESTRICT weight,
                            const float* CD_RESTRICT cos, const float* CD_RESTRICT sin, int64_t other, int64_t dim,
                            float eps, T* CD_RESTRICT out, float* CD_RESTRICT rstd) {
    const int64_t half = dim / 2;
    const float square = lane_sum(dim, [=](int64_t i) { return x[i] * x[i]; });
    const float r = 1.0f / std::sqrt(square / static_cast<float>(dim) + eps);
    *rstd = r;
    if (cos == nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) out[i] = narrow<T>(x[i] * r * weight[i]);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            const float a = x[i] * r * weight[i], b = x[i + half] * r * weight[i + half];
            out[i] = narrow<T>(a * cos[i] - b * sin[i]);
            out[i + half] = narrow<T>(b * cos[i + other] + a * sin[i + other]);
        }
    }
}

// One token: every head shares the token's tables.
template <class T>
CD_CLONES void token_forward(const float* CD_RESTRICT x, const float* CD_RESTRICT weight,
                             const float* CD_RESTRICT cos, const float* CD_RESTRICT sin, int64_t other,
                             int64_t heads, int64_t head_dim, float eps, T* CD_RESTRICT out,
                             float* CD_RESTRICT rstd) {
    with_head_dim(head_dim, [=](auto dim) __attribute__((always_inline)) {
        for (int64_t h = 0; h < heads; h++) {
            head_forward(x + h * dim, weight, cos, sin, other, dim, eps, out + h * dim, rstd + h);
        }
    });
}

// dn is the gradient before the rotation (the rotation transposed), n = x * r * weight:
// dx = r * (dn * weight - x * r * mean(dn * weight * x * r)), dweight += dn * x * r. `dn` is space for one head.
template <class T>
CD_INLINE void head_backward(const T* CD_RESTRICT grad, const float* CD_RESTRICT x, float r,
                             const float* CD_RESTRICT weight, const float* CD_RESTRICT cos,
                             const float* CD_RESTRICT sin, int64_t other, int64_t dim, float* CD_RESTRICT dn,
                             T* CD_RESTRICT dx, float* CD_RESTRICT dweight) {
    const int64_t half = dim / 2;
    if (cos == nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) dn[i] = load(grad[i]);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            const float a = load(grad[i]), b = load(grad[i + half]);
            dn[i] = a * cos[i] + b * sin[i + other];
            dn[i + half] = b * cos[i + other] - a * sin[i];
        }
    }
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < dim; i++) {
        const float share = dn[i] * x[i] * r;
        dweight[i] += share;
        dot += share * weight[i];
    }
    const float mean = dot / static_cast<float>(dim);
#pragma omp simd
    for (int64_t i = 0; i < dim; i++) dx[i] = narrow<T>(r * (dn[i] * weight[i] - x[i] * r * mean));
}

// The token's own sum comes first: thousands of terms added one after the other would cost digits. `space` is
// for two heads.
template <class T>
CD_CLONES void token_backward(const T* CD_RESTRICT grad, const float* CD_RESTRICT x, const float* CD_RESTRICT rstd,
                              const float* CD_RESTRICT weight, const float* CD_RESTRICT cos,
                              const float* CD_RESTRICT sin, int64_t other, int64_t heads, int64_t head_dim,
                              float* CD_RESTRICT space, T* CD_RESTRICT dx, float* CD_RESTRICT dweight) {
    with_head_dim(head_dim, [=](auto dim) __attribute__((always_inline)) {
        float *dn = space, *sum = space + dim;
        for (int64_t i = 0; i < dim; i++) sum[i] = 0.0f;
        for (int64_t h = 0; h < heads; h++) {
            const int64_t at = h * dim;
            head_backward(grad + at, x + at, rstd[h], weight, cos, sin, other, dim, dn, dx + at, sum);
        }
        for (int64_t i = 0; i < dim; i++) dweight[i] += sum[i];
    });
}

// The cosines and sines of one token. A factored table is put together in `space`, once for all heads; of the token
// after the last one only the part of w is new, unless a line of the grid ends.
struct Row {
    const float* cos;
    const float* sin;
    int64_t other;  // see head_forward

    explicit Row(const Heads& shape)
        : cos(nullptr), sin(nullptr), other(shape.head_dim / 2), space(static_cast<size_t>(shape.head_dim)) {}

    void read(const Heads& shape, const Tables& tables, int64_t token) {
        if (tables.cos == nullptr) return;
        if (!tables.factored()) {
            const int64_t at = (tables.per_sample ? token : token % shape.length) * shape.head_dim;
            cos = tables.cos + at;
            sin = tables.sin + at;
            return;
        }
        if (token == last + 1 && w + 1 < tables.width) {
            w++;
        } else {
            start_line(shape, tables, token);
        }
        last = token;
        const int64_t th = tables.t + tables.h;
        std::copy_n(cos_w + w * tables.w, tables.w, space.data() + th);
        std::copy_n(sin_w + w * tables.w, tables.w, space.data() + shape.head_dim / 2 + th);
    }

  private:
    std::vector<float> space;  // half of a head each: both halves turn by the same angles
    int64_t last = -2, w = 0;
    const float *cos_w = nullptr, *sin_w = nullptr;

    void start_line(const Heads& shape, const Tables& tables, int64_t token) {
        const int64_t sample = tables.per_sample ? token / shape.length : 0, line = token % shape.length / tables.width;
        const int64_t t = line / tables.height, h = line % tables.height;
        w = token % shape.length % tables.width;
        float *to_cos = space.data(), *to_sin = to_cos + shape.head_dim / 2;
        cos_w = gather(tables.cos + sample * tables.length(), tables, t, h, to_cos);
        sin_w = gather(tables.sin + sample * tables.length(), tables, t, h, to_sin);
        cos = to_cos;
        sin = to_sin;
        other = 0;
    }

    // Returns the table of w.
    static const float* gather(const float* from, const Tables& tables, int64_t t, int64_t h, float* to) {
        const float* at_h = from + tables.frames * tables.t;
        std::copy_n(from + t * tables.t, tables.t, to);
        std::copy_n(at_h + h * tables.h, tables.h, to + tables.t);
        return at_h + tables.height * tables.h;
    }
};

}  // namespace

template <class T>
void norm_rope_forward(Heads shape, const T* x, const float* weight, Tables tables, float eps, T* out,
                       float* rstd) {
    const int64_t size = shape.token();
#pragma omp parallel if (shape.tokens() * size >= kParallelElements)
    {
        Row row(shape);
        RowReader<T> from(size);
        RowWriter<T> to(out, shape.tokens() * size, size);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < shape.tokens(); t++) {
            row.read(shape, tables, t);
            token_forward(from.read(x + t * shape.stride), weight, row.cos, row.sin, row.other, shape.heads,
                          shape.head_dim, eps, to.row(t * size), rstd + t * shape.heads);
            to.done(t * size, size, x + (t + 1) * shape.stride);
        }
    }
}

template <class T>
void norm_rope_backward(Heads shape, const T* grad, const T* x, const float* rstd, const float* weight,
                        Tables tables, T* dx, float* dweight) {
    const int64_t size = shape.token(), dim = shape.head_dim;
    const int64_t chunks = (shape.tokens() + kRowsPerChunk - 1) / kRowsPerChunk;
    const auto partial = scratch<float>(chunks * dim);
#pragma omp parallel if (shape.tokens() * size >= kParallelElements)
    {
        Row row(shape);
        RowReader<T> from(size);
        RowWriter<T> to(dx, shape.tokens() * size, size);
        const auto space = scratch<float>(2 * dim);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < chunks; c++) {
            float* sum = partial.get() + c * dim;
            std::fill(sum, sum + dim, 0.0f);
            const int64_t last = std::min(shape.tokens(), (c + 1) * kRowsPerChunk);
            for (int64_t t = c * kRowsPerChunk; t < last; t++) {
                row.read(shape, tables, t);
                token_backward(grad + t * size, from.read(x + t * shape.stride), rstd + t * shape.heads, weight, row.cos,
                               row.sin, row.other, shape.heads, dim, space.get(), to.row(t * size), sum);
                to.done(t * size, size, grad + (t + 1) * size, x + (t + 1) * shape.stride);
            }
        }
    }
    reduce_chunks(partial.get(), 1, chunks, dim, dweight);
}

#define CD_INSTANTIATE(T)                                                                            \
    template void norm_rope_forward(Heads, const T*, const float*, Tables, float, T*, float*);       \
    template void norm_rope_backward(Heads, const T*, const T*, const float*, const float*, Tables, T*, float*);
CD_FOR_ELEMENTS(CD_INSTANTIATE)

}  // namespace cd
