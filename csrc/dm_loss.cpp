#include "dm_loss.h"

#include <cmath>

#include "common/operator.h"
#include "common/tile.h"

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

// Whether a result that is laid out like the blocks is streamed.
template <class T>
bool streams(const Blocks& blocks, const T* result) {
    return cd::streams(result, blocks.elements(), blocks.samples.inner);
}

template <bool Streamed, class T>
CD_KERNEL void block_renoise(const T* CD_RESTRICT x0, const T* CD_RESTRICT eps, float alpha, float sigma, int64_t n,
                             float* CD_RESTRICT result) {
    int64_t i = 0;
    for (; i + kTile <= n; i += kTile) {
        write_as<T, Streamed>(Tile(alpha) * read(x0 + i) + Tile(sigma) * read(eps + i), result + i);
    }
    for (; i < n; i++) result[i] = alpha * load(x0[i]) + sigma * load(eps[i]);
}

// The direction, and sums[0] = sum |x - x0 of teacher| (not yet masked), sums[1] = sum direction^2. Of the
// difference between two predictions x_t cancels: it is needed for the distance only.
template <bool Guided, bool Raw, bool Streamed, class T>
CD_KERNEL void block_vsd(const T* CD_RESTRICT x, const T* CD_RESTRICT teacher, const T* CD_RESTRICT fake,
                         const T* CD_RESTRICT uncond, const T* CD_RESTRICT x_t, float weight, Coefficients c,
                         float mask, int64_t n, T* CD_RESTRICT direction, float* CD_RESTRICT sums) {
    const auto at = [=](auto from, auto& d, auto& away) __attribute__((always_inline)) {
        using V = std::remove_reference_t<decltype(d)>;
        V p = from(teacher);
        if (Guided) {
            const V u = from(uncond);
            p = u + V(weight) * (p - u);
        }
        d = V(mask * c.out) * (from(fake) - p);
        if (Raw) p = V(c.skip) * from(x_t) + V(c.out) * p;
        away = from(x) - p;
    };
    Tile distances(0.0f), squares(0.0f);
    int64_t i = 0;
    for (; i + kTile <= n; i += kTile) {
        Tile d, away;
        at([=](const T* p) __attribute__((always_inline)) { return read(p + i); }, d, away);
        distances += absolute(away);
        squares += d * d;
        write<Streamed>(d, direction + i);
    }
    float distance = 0.0f, square = 0.0f;  // of the rest alone: among small numbers less is rounded away
    for (; i < n; i++) {
        float d, away;
        at([=](const T* p) __attribute__((always_inline)) { return load(p[i]); }, d, away);
        distance += std::fabs(away);
        square += d * d;
        direction[i] = narrow<T>(d);
    }
    sums[0] = sum_of(distances) + distance;
    sums[1] = sum_of(squares) + square;
}

template <bool Streamed, class T>
CD_KERNEL void block_scale(const T* CD_RESTRICT x, float factor, int64_t n, T* CD_RESTRICT result) {
    int64_t i = 0;
    for (; i + kTile <= n; i += kTile) write<Streamed>(Tile(factor) * read(x + i), result + i);
    for (; i < n; i++) result[i] = narrow<T>(factor * load(x[i]));
}

// target - x0, of floats or tiles.
template <bool Raw, class V>
CD_INLINE V residual(V p, V target, V x_t, Coefficients c) {
    return Raw ? target - (V(c.skip) * x_t + V(c.out) * p) : target - p;
}

template <bool Raw, class T>
CD_KERNEL float block_squares(const T* CD_RESTRICT p, const T* CD_RESTRICT target, const T* CD_RESTRICT x_t,
                              Coefficients c, int64_t n) {
    Tile squares(0.0f);
    int64_t i = 0;
    for (; i + kTile <= n; i += kTile) {
        const Tile away = residual<Raw>(read(p + i), read(target + i), read(x_t + i), c);
        squares += away * away;
    }
    float square = 0.0f;
    for (; i < n; i++) {
        const float away = residual<Raw>(load(p[i]), load(target[i]), load(x_t[i]), c);
        square += away * away;
    }
    return sum_of(squares) + square;
}

template <bool Raw, bool Streamed, class T>
CD_KERNEL void block_squares_gradient(const T* CD_RESTRICT p, const T* CD_RESTRICT target,
                                      const T* CD_RESTRICT x_t, Coefficients c, float factor, int64_t n,
                                      T* CD_RESTRICT result) {
    int64_t i = 0;
    for (; i + kTile <= n; i += kTile) {
        write<Streamed>(Tile(factor) * residual<Raw>(read(p + i), read(target + i), read(x_t + i), c), result + i);
    }
    for (; i < n; i++) {
        result[i] = narrow<T>(factor * residual<Raw>(load(p[i]), load(target[i]), load(x_t[i]), c));
    }
}

// Calls run(block, its number) for all blocks, on all threads.
template <class Run>
void for_blocks(const Blocks& blocks, Run run) {
#pragma omp parallel if (blocks.parallel())
    {
#pragma omp for schedule(static)
        for (int64_t k = 0; k < blocks.count(); k++) run(blocks[k], k);
        stream_end();
    }
}

template <bool Guided, bool Raw, bool Streamed, class T>
void vsd_as(const Blocks& blocks, const T* x, const T* teacher, const T* fake, const T* uncond,
            const Denoised<T>& where, float guidance, T* direction, float* sums) {
    const Scratch<float> partial(3 * blocks.count());
    for_blocks(blocks, [&](const Block& block, int64_t k) {
        const int64_t at = block.at;
        const T *u = Guided ? uncond : teacher, *x_t = Raw ? where.x_t : x;
        float* sum = partial.get() + 3 * k;
        block_vsd<Guided, Raw, Streamed>(x + at, teacher + at, fake + at, u + at, x_t + at, 1.0f + guidance,
                                         of_sample(where, block.sample), block.mask, block.count, direction + at, sum);
        sum[0] *= block.mask;
        sum[2] = block.mask * static_cast<float>(block.count);
    });
    add_up(blocks, partial.get(), 3, sums);
}

}  // namespace

template <class T>
void renoise(Whole whole, const T* x0, const T* eps, const float* alpha, const float* sigma, float* result) {
    const Blocks blocks(whole.samples);
    with_flag(streams(blocks, result), [&](auto streamed) {
        constexpr bool Streamed = decltype(streamed)::value;
        for_blocks(blocks, [&](const Block& block, int64_t) {
            const int64_t at = block.at;
            block_renoise<Streamed>(x0 + at, eps + at, alpha == nullptr ? 1.0f : alpha[block.sample],
                                    sigma[block.sample], block.count, result + at);
        });
    });
}

template <class T>
void vsd(Samples samples, const T* x, const T* teacher, const T* fake, const T* uncond, Denoised<T> where,
         float guidance, T* direction, float* sums) {
    const Blocks blocks(samples);
    with_flag(uncond != nullptr, [&](auto guided) {
        with_flag(where.x_t != nullptr, [&](auto raw) {
            with_flag(streams(blocks, direction), [&](auto streamed) {
                vsd_as<decltype(guided)::value, decltype(raw)::value, decltype(streamed)::value>(
                    blocks, x, teacher, fake, uncond, where, guidance, direction, sums);
            });
        });
    });
}

template <class T>
void vsd_gradient(Whole whole, const T* direction, const float* slope, T* result) {
    const Blocks blocks(whole.samples);
    with_flag(streams(blocks, result), [&](auto streamed) {
        constexpr bool Streamed = decltype(streamed)::value;
        for_blocks(blocks, [&](const Block& block, int64_t) {
            const float factor = slope[block.sample];
            T* to = result + block.at;
            // Not the product: a slope of zero silences a NaN.
            if (factor == 0.0f) {
                std::fill(to, to + block.count, narrow<T>(0.0f));
            } else {
                block_scale<Streamed>(direction + block.at, factor, block.count, to);
            }
        });
    });
}

template <class T>
void squared_error(Samples samples, const T* p, const T* target, Denoised<T> where, float* sums) {
    const Blocks blocks(samples);
    const Scratch<float> partial(blocks.count());
    with_flag(where.x_t != nullptr, [&](auto raw) {
        constexpr bool Raw = decltype(raw)::value;
        const T* x_t = Raw ? where.x_t : p;
        for_blocks(blocks, [&](const Block& block, int64_t k) {
            const int64_t at = block.at;
            partial.get()[k] = block.mask * block_squares<Raw>(p + at, target + at, x_t + at, of_sample(where, block.sample),
                                                         block.count);
        });
    });
    add_up(blocks, partial.get(), 1, sums);
}

template <class T>
void squared_error_gradient(Samples samples, const float* grad, const T* p, const T* target, Denoised<T> where,
                            T* result) {
    const Blocks blocks(samples);
    with_flag(where.x_t != nullptr, [&](auto raw) {
        with_flag(streams(blocks, result), [&](auto streamed) {
            constexpr bool Raw = decltype(raw)::value, Streamed = decltype(streamed)::value;
            const T* x_t = Raw ? where.x_t : p;
            for_blocks(blocks, [&](const Block& block, int64_t) {
                const int64_t at = block.at;
                const Coefficients c = of_sample(where, block.sample);
                block_squares_gradient<Raw, Streamed>(p + at, target + at, x_t + at, c,
                                                      -2.0f * grad[block.sample] * block.mask * c.out, block.count,
                                                      result + at);
            });
        });
    });
}

// A list of batch, segments, inner and frames.
template <>
struct Read<Whole> {
    static Whole from(Arguments& in) {
        const auto shape = in.next<std::vector<int64_t>>();
        return Samples{shape.at(0), shape.at(1), shape.at(2), shape.at(3), nullptr};
    }
};
// The same, and the mask.
template <>
struct Read<Samples> {
    static Samples from(Arguments& in) {
        Samples samples = in.next<Whole>().samples;
        samples.mask = in.next<const float*>();
        return samples;
    }
};
template <class T>
struct Read<Denoised<T>> : ReadMembers<Denoised<T>, const T*, const float*> {};

CD_OPERATOR(renoise)
CD_OPERATOR(vsd)
CD_OPERATOR(vsd_gradient)
CD_OPERATOR(squared_error)
CD_OPERATOR(squared_error_gradient)

}  // namespace cd
