#include "dm_loss.h"

#include <cmath>

#include "common/stream.h"

namespace cd {
namespace {

// Elements handled at a time: few enough for the fastest cache, and what one partial sum covers.
constexpr int64_t kBlock = 2048;

// Consecutive elements of one sample under one value of the mask.
struct Block {
    int64_t sample, at, count;
    float mask;
};

struct Blocks {
    Samples samples;
    int64_t per_segment;

    explicit Blocks(const Samples& s) : samples(s), per_segment((s.inner + kBlock - 1) / kBlock) {}
    int64_t per_sample() const { return samples.segments * per_segment; }
    int64_t count() const { return samples.batch * per_sample(); }
    int64_t elements() const { return samples.batch * samples.size(); }
    bool parallel() const { return elements() >= kParallelElements; }

    Block operator[](int64_t k) const {
        const int64_t sample = k / per_sample(), segment = k / per_segment % samples.segments,
                      first = k % per_segment * kBlock;
        const float* mask = samples.mask;
        return {sample, sample * samples.size() + segment * samples.inner + first,
                std::min(kBlock, samples.inner - first),
                mask == nullptr ? 1.0f : mask[sample * samples.frames + segment % samples.frames]};
    }
};

// Sums of each sample from its blocks' partial sums [blocks, kinds], in the order of the blocks.
void add_up(const Blocks& blocks, const float* partial, int64_t kinds, float* sums) {
    for (int64_t b = 0; b < blocks.samples.batch; b++) {
        for (int64_t k = 0; k < kinds; k++) {
            double sum = 0.0;
            for (int64_t i = b * blocks.per_sample(); i < (b + 1) * blocks.per_sample(); i++) {
                sum += static_cast<double>(partial[i * kinds + k]);
            }
            sums[b * kinds + k] = static_cast<float>(sum);
        }
    }
}

struct Coefficients {
    float skip, out;
};

template <class T>
Coefficients of_sample(const Denoised<T>& where, int64_t sample) {
    if (where.x_t == nullptr) return {0.0f, 1.0f};
    return {where.coefficients[2 * sample], where.coefficients[2 * sample + 1]};
}

template <class T>
CD_CLONES void block_renoise(const T* CD_RESTRICT x0, const T* CD_RESTRICT eps, float alpha, float sigma, int64_t n,
                             float* CD_RESTRICT result) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) result[i] = alpha * load(x0[i]) + sigma * load(eps[i]);
}

// The direction, and sums[0] = sum |x - x0 of teacher| (not yet masked), sums[1] = sum direction^2. Of the
// difference between two predictions x_t cancels: it is needed for the distance only.
template <bool Guided, bool Raw, class T>
CD_CLONES void block_vsd(const T* CD_RESTRICT x, const T* CD_RESTRICT teacher, const T* CD_RESTRICT fake,
                         const T* CD_RESTRICT uncond, const T* CD_RESTRICT x_t, float weight, Coefficients c,
                         float mask, int64_t n, T* CD_RESTRICT direction, float* CD_RESTRICT sums) {
    float distances[kLanes], squares[kLanes];
    const float factor = mask * c.out;
    const auto one = [=, &distances, &squares](int64_t i, int j) __attribute__((always_inline)) {
        float p = load(teacher[i]);
        if (Guided) {
            const float u = load(uncond[i]);
            p = u + weight * (p - u);
        }
        const float d = factor * (load(fake[i]) - p);
        if (Raw) p = c.skip * load(x_t[i]) + c.out * p;
        distances[j] += std::fabs(load(x[i]) - p);
        squares[j] += d * d;
        direction[i] = narrow<T>(d);
    };
#pragma omp simd
    for (int j = 0; j < kLanes; j++) distances[j] = squares[j] = 0.0f;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
        for (int j = 0; j < kLanes; j++) one(i + j, j);
    }
    for (int j = 0; i < n; i++, j++) one(i, j);
    float distance = 0.0f, square = 0.0f;
#pragma omp simd reduction(+ : distance, square)
    for (int j = 0; j < kLanes; j++) distance += distances[j], square += squares[j];
    sums[0] = distance;
    sums[1] = square;
}

template <class T>
CD_CLONES void block_scale(const T* CD_RESTRICT x, float factor, int64_t n, T* CD_RESTRICT result) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) result[i] = narrow<T>(factor * load(x[i]));
}

template <bool Raw, class T>
CD_INLINE float residual(const T* p, const T* target, const T* x_t, Coefficients c, int64_t i) {
    const float x0 = Raw ? c.skip * load(x_t[i]) + c.out * load(p[i]) : load(p[i]);
    return load(target[i]) - x0;
}

template <bool Raw, class T>
CD_CLONES float block_squares(const T* CD_RESTRICT p, const T* CD_RESTRICT target, const T* CD_RESTRICT x_t,
                              Coefficients c, int64_t n) {
    return lane_sum(n, [=](int64_t i) {
        const float away = residual<Raw>(p, target, x_t, c, i);
        return away * away;
    });
}

template <bool Raw, class T>
CD_CLONES void block_squares_gradient(const T* CD_RESTRICT p, const T* CD_RESTRICT target,
                                      const T* CD_RESTRICT x_t, Coefficients c, float factor, int64_t n,
                                      T* CD_RESTRICT result) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) result[i] = narrow<T>(factor * residual<Raw>(p, target, x_t, c, i));
}

template <bool Guided, bool Raw, class T>
void vsd_as(const Blocks& blocks, const T* x, const T* teacher, const T* fake, const T* uncond,
            const Denoised<T>& where, float guidance, T* direction, float* sums) {
    const auto partial = scratch<float>(3 * blocks.count());
#pragma omp parallel if (blocks.parallel())
    {
        RowWriter<T> to(direction, blocks.elements(), kBlock);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < blocks.count(); k++) {
            const Block block = blocks[k];
            const int64_t at = block.at, next = at + block.count;
            const T *u = Guided ? uncond : teacher, *x_t = Raw ? where.x_t : x;
            float* sum = partial.get() + 3 * k;
            block_vsd<Guided, Raw>(x + at, teacher + at, fake + at, u + at, x_t + at, 1.0f + guidance,
                                   of_sample(where, block.sample), block.mask, block.count, to.row(at), sum);
            sum[0] *= block.mask;
            sum[2] = block.mask * static_cast<float>(block.count);
            to.done(at, block.count, x + next, teacher + next, fake + next, u + next, x_t + next);
        }
    }
    add_up(blocks, partial.get(), 3, sums);
}

}  // namespace

template <class T>
void renoise(Samples samples, const T* x0, const T* eps, const float* alpha, const float* sigma, float* result) {
    const Blocks blocks(samples);
#pragma omp parallel if (blocks.parallel())
    {
        RowWriter<float> to(result, blocks.elements(), kBlock);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < blocks.count(); k++) {
            const Block block = blocks[k];
            const int64_t at = block.at, next = at + block.count;
            block_renoise(x0 + at, eps + at, alpha == nullptr ? 1.0f : alpha[block.sample], sigma[block.sample],
                          block.count, to.row(at));
            to.done(at, block.count, x0 + next, eps + next);
        }
    }
}

template <class T>
void vsd(Samples samples, const T* x, const T* teacher, const T* fake, const T* uncond, Denoised<T> where,
         float guidance, T* direction, float* sums) {
    const auto run = uncond != nullptr ? (where.x_t != nullptr ? vsd_as<true, true, T> : vsd_as<true, false, T>)
                                       : (where.x_t != nullptr ? vsd_as<false, true, T> : vsd_as<false, false, T>);
    run(Blocks(samples), x, teacher, fake, uncond, where, guidance, direction, sums);
}

template <class T>
void vsd_gradient(Samples samples, const T* direction, const float* slope, T* result) {
    const Blocks blocks(samples);
#pragma omp parallel if (blocks.parallel())
    {
        RowWriter<T> to(result, blocks.elements(), kBlock);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < blocks.count(); k++) {
            const Block block = blocks[k];
            const float factor = slope[block.sample];
            T* row = to.row(block.at);
            // Not the product: a slope of zero silences a NaN.
            if (factor == 0.0f) {
                std::fill(row, row + block.count, narrow<T>(0.0f));
            } else {
                block_scale(direction + block.at, factor, block.count, row);
            }
            to.done(block.at, block.count, direction + block.at + block.count);
        }
    }
}

template <class T>
void squared_error(Samples samples, const T* p, const T* target, Denoised<T> where, float* sums) {
    const Blocks blocks(samples);
    const auto partial = scratch<float>(blocks.count());
#pragma omp parallel for schedule(static) if (blocks.parallel())
    for (int64_t k = 0; k < blocks.count(); k++) {
        const Block block = blocks[k];
        const int64_t at = block.at;
        const Coefficients c = of_sample(where, block.sample);
        partial[k] = block.mask * (where.x_t != nullptr
                                       ? block_squares<true>(p + at, target + at, where.x_t + at, c, block.count)
                                       : block_squares<false>(p + at, target + at, p + at, c, block.count));
    }
    add_up(blocks, partial.get(), 1, sums);
}

template <class T>
void squared_error_gradient(Samples samples, const float* grad, const T* p, const T* target, Denoised<T> where,
                            T* result) {
    const Blocks blocks(samples);
#pragma omp parallel if (blocks.parallel())
    {
        RowWriter<T> to(result, blocks.elements(), kBlock);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < blocks.count(); k++) {
            const Block block = blocks[k];
            const int64_t at = block.at, next = at + block.count;
            const Coefficients c = of_sample(where, block.sample);
            const float factor = -2.0f * grad[block.sample] * block.mask * c.out;
            if (where.x_t != nullptr) {
                block_squares_gradient<true>(p + at, target + at, where.x_t + at, c, factor, block.count, to.row(at));
                to.done(at, block.count, p + next, target + next, where.x_t + next);
            } else {
                block_squares_gradient<false>(p + at, target + at, p + at, c, factor, block.count, to.row(at));
                to.done(at, block.count, p + next, target + next);
            }
        }
    }
}

#define CD_INSTANTIATE(T)                                                                                          \
    template void renoise(Samples, const T*, const T*, const float*, const float*, float*);                        \
    template void vsd(Samples, const T*, const T*, const T*, const T*, Denoised<T>, float, T*, float*);            \
    template void vsd_gradient(Samples, const T*, const float*, T*);                                               \
    template void squared_error(Samples, const T*, const T*, Denoised<T>, float*);                                 \
    template void squared_error_gradient(Samples, const float*, const T*, const T*, Denoised<T>, T*);
CD_FOR_ELEMENTS(CD_INSTANTIATE)

}  // namespace cd
