// Every operation of this file rounds, with a fused multiply-add as without: see below.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "bilateral.h"

#include <cmath>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "common/operator.h"
#include "common/vector.h"

namespace cd {
namespace {

// Both pixels of a pair have the same weight, which is computed once. Pairs of rows are gone through: the columns of one give
// the weights and what the other row adds to this one's sums; some columns behind, the stored weights give what this row
// adds to the other one's.
//
// No instruction set rounds otherwise than another. What a weight is computed with is rounded operation by operation; the
// weight keeps 16 significant bits, so that its product with 8-bit colours is exact and a fused multiply-add is the same as
// a multiplication and an addition. A pixel's sums are added up by rows, from the top, whichever band it is in.

using Floats = Vector<float, kLanes>;
using Bits = Vector<uint32_t, kLanes>;

// Columns that are summed up in registers at a time.
constexpr int64_t kColumns = 2 * kLanes;
// The fewest rows that a thread takes: those within the radius above them are gone through once more.
constexpr int64_t kRows = 64;

constexpr int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Index of a border that is mirrored without being repeated.
int64_t mirrored(int64_t i, int64_t n) {
    if (n == 1) return 0;
    const int64_t period = 2 * (n - 1), at = (i % period + period) % period;
    return at < n ? at : period - at;
}

// Channels as planes of floats, with mirrored borders and more columns of zeros, which are read and do not count.
struct Planes {
    int64_t height, width, radius, margin, stride;
    Scratch<float> memory;

    Planes(const uint8_t* picture, int64_t height_, int64_t width_, int64_t radius_)
        : height(height_),
          width(width_),
          radius(radius_),
          margin(up(2 * radius_ + kColumns, kColumns)),
          // Rows do not start at one place of the cache.
          stride(up(width_ + kColumns, 1024) + 2 * up(margin, 16) + 16),
          memory(3 * (height_ + 2 * radius_) * stride) {
        std::vector<int64_t> from(static_cast<size_t>(width + 2 * radius));
        for (int64_t x = -radius; x < width + radius; x++) from[static_cast<size_t>(x + radius)] = 3 * mirrored(x, width);
        for (int64_t y = -radius; y < height + radius; y++) {
            const uint8_t* const row = picture + mirrored(y, height) * width * 3;
            for (int c = 0; c < 3; c++) {
                float* const to = at(c, y) - margin;
                std::fill(to, to + stride, 0.0f);
                for (int64_t x = 0; x < width + 2 * radius; x++) {
                    to[margin - radius + x] = static_cast<float>(row[from[static_cast<size_t>(x)] + c]);
                }
            }
        }
    }
    // Column 0 of a row.
    float* at(int channel, int64_t y) const {
        return memory.get() + (channel * (height + 2 * radius) + y + radius) * stride + margin;
    }
};

// exp2(scale * difference^2 + shift), rounded towards zero to 16 significant bits; where Least, no less than about 2^-100.
template <bool Least>
CD_INLINE Floats weight_of(Floats difference, float scale, float shift) {
    Floats t = difference * difference * scale + shift;
    if (Least) t = t > -100.0f ? t : Floats{} - 100.0f;
    const Floats nearest = t + 0x1.8p23f, f = t - (nearest - 0x1.8p23f);
    // 2^f by a polynomial that is exact at 0, relative error below 3e-6 within half of 0.
    const Floats p = ((0.00958286226f * f + 0.0559064634f) * f + 0.240240991f) * f + 0.693124175f;
    const Bits all = detail::bits(p * f + 1.0f) + (detail::bits(nearest) << 23);
    return detail::floats(all & 0xFFFFFF00u);
}

CD_INLINE Floats absolute(Floats value) { return detail::floats(detail::bits(value) & 0x7FFFFFFFu); }

// Weighted sums of a vector of columns, and of the weights.
struct Sums {
    Floats r = {}, g = {}, b = {}, weights = {};

    CD_INLINE void add(Floats weight, Floats red, Floats green, Floats blue) {
        weights += weight;
        r = detail::multiply_add(weight, red, r);
        g = detail::multiply_add(weight, green, g);
        b = detail::multiply_add(weight, blue, b);
    }
    // To four rows of sums.
    CD_INLINE void flush(float* sums, int64_t stride) const {
        const auto one = [](Floats value, float* to) __attribute__((always_inline)) {
            value += detail::at<Floats>(to);
            std::memcpy(to, &value, sizeof value);
        };
        one(r, sums);
        one(g, sums + stride);
        one(b, sums + 2 * stride);
        one(weights, sums + 3 * stride);
    }
};

struct Pixels {
    const float *r, *g, *b;
};

// Pairs of columns x of one row and x + dx of another, dx = first .. last.
struct Pairs {
    Pixels here, there;
    int64_t first, last;
    float scale;
    const float* shift;  // by dx - first
    float* weights;      // [dx - first, column], column 0 of the first
    int64_t stride;      // of weights
};

// Weights of a vector of columns from x, and, where Wanted, what the other row adds to this one's sums.
template <bool Wanted, bool Least>
CD_KERNEL void weigh(const Pairs& pairs, int64_t x, float* sums, int64_t stride) {
    const int64_t n = pairs.last - pairs.first + 1, step = pairs.stride;
    const float *const CD_RESTRICT r = pairs.there.r + x + pairs.first, *const CD_RESTRICT g = pairs.there.g + x + pairs.first,
                *const CD_RESTRICT b = pairs.there.b + x + pairs.first, *const CD_RESTRICT shift = pairs.shift;
    float* CD_RESTRICT to = pairs.weights + x;
    const Floats red = detail::at<Floats>(pairs.here.r + x), green = detail::at<Floats>(pairs.here.g + x),
                 blue = detail::at<Floats>(pairs.here.b + x);
    const float scale = pairs.scale;
    Sums found;
    for (int64_t i = 0; i < n; i++, to += step) {
        const Floats its_red = detail::at<Floats>(r + i), its_green = detail::at<Floats>(g + i),
                     its_blue = detail::at<Floats>(b + i);
        const Floats difference = absolute(its_red - red) + absolute(its_green - green) + absolute(its_blue - blue);
        const Floats weight = weight_of<Least>(difference, scale, shift[i]);
        std::memcpy(to, &weight, sizeof weight);
        if (Wanted) found.add(weight, its_red, its_green, its_blue);
    }
    if (Wanted) found.flush(sums, stride);
}

// What this row adds to the sums of columns x .. x + kColumns - 1 of the other one.
CD_KERNEL void spread(const Pairs& pairs, int64_t x, float* sums, int64_t stride) {
    Sums found, beside;
    const int64_t n = pairs.last - pairs.first + 1, step = pairs.stride - 1, at = x - pairs.first;
    const float *const r = pairs.here.r + at, *const g = pairs.here.g + at, *const b = pairs.here.b + at;
    const float* from = pairs.weights + at;
    for (int64_t i = 0; i < n; i++, from += step) {
        const auto add = [&](Sums& to, int64_t k) __attribute__((always_inline)) {
            to.add(detail::at<Floats>(from + k), detail::at<Floats>(r + k - i), detail::at<Floats>(g + k - i),
                   detail::at<Floats>(b + k - i));
        };
        add(found, 0);
        add(beside, kLanes);
    }
    found.flush(sums, stride);
    beside.flush(sums + kLanes, stride);
}

// Sums of the rows that are still added to, four rows of columns each.
struct Window {
    int64_t rows, stride;
    Scratch<float> memory;

    Window(int64_t rows_, int64_t columns) : rows(rows_), stride(up(columns, 16) + 16), memory(rows_ * 4 * stride) {
        std::fill(memory.get(), memory.get() + rows * 4 * stride, 0.0f);
    }
    float* at(int64_t y) const { return memory.get() + y % rows * 4 * stride; }
};

CD_KERNEL void finish(const Planes& planes, int64_t y, float* sums, int64_t stride, uint8_t* result) {
    for (int64_t x = 0; x < planes.width; x++) {
        const float weight = sums[3 * stride + x] + 1.0f;  // with its own
        for (int c = 0; c < 3; c++) {
            const float mean = (sums[c * stride + x] + planes.at(c, y)[x]) / weight;
            result[3 * x + c] = static_cast<uint8_t>(std::nearbyint(mean));
        }
    }
    std::fill(sums, sums + 4 * stride, 0.0f);
}

struct Filter {
    int64_t radius;
    float scale;
    bool deep;                  // weights may be too small for a float's exponent
    std::vector<int64_t> half;  // of the disc, by rows from its middle
    std::vector<float> shift;   // [radius + 1, 2 radius + 1]

    Filter(int64_t radius_, double color, double space) : radius(radius_) {
        constexpr double log2e = 1.4426950408889634;
        scale = static_cast<float>(-0.5 * log2e / (color * color));
        for (int64_t dy = 0; dy <= radius; dy++) {
            int64_t reach = 0;
            while ((reach + 1) * (reach + 1) + dy * dy <= radius * radius) reach++;
            half.push_back(reach);
            for (int64_t dx = -radius; dx <= radius; dx++) {
                const double distance = static_cast<double>(dx * dx + dy * dy);
                shift.push_back(static_cast<float>(-0.5 * log2e * distance / (space * space)));
            }
        }
        deep = 3 * 255.0f * 3 * 255.0f * scale + *std::min_element(shift.begin(), shift.end()) < -99.0f;
    }
};

// Rows first .. last - 1 of the result.
void band(const Planes& planes, const Filter& filter, int64_t first, int64_t last, uint8_t* result) {
    const int64_t radius = filter.radius, width = planes.width, columns = up(width, kColumns);
    Window window(radius + 1, columns);
    // Columns before 0 and after the last have weights for those within.
    const int64_t before = up(radius, kColumns), stride = columns + 2 * before + 16;
    Scratch<float> weights((2 * radius + 1) * stride);
    std::fill(weights.get(), weights.get() + (2 * radius + 1) * stride, 0.0f);
    const auto pixels = [&](int64_t y) { return Pixels{planes.at(0, y), planes.at(1, y), planes.at(2, y)}; };
    for (int64_t y = first - radius; y < last; y++) {
        const bool mine = y >= first;
        for (int64_t dy = 0; dy <= radius; dy++) {
            const bool theirs = y + dy >= first && y + dy < last && (dy > 0 || mine);
            if (!mine && !theirs) continue;
            const int64_t reach = filter.half[static_cast<size_t>(dy)], from = dy == 0 ? 1 : -reach;
            const Pairs pairs{pixels(y), pixels(y + dy), from, reach, filter.scale,
                              filter.shift.data() + dy * (2 * radius + 1) + radius + from, weights.get() + before, stride};
            const int64_t ahead = theirs ? up(reach, kColumns) : 0;
            for (int64_t x = -ahead; x < columns + ahead; x += kColumns) {
                for (int64_t at = x; at < x + kColumns; at += kLanes) {
                    if (mine && x >= 0 && x < columns) {
                        (filter.deep ? weigh<true, true> : weigh<true, false>)(pairs, at, window.at(y) + at, window.stride);
                    } else {
                        (filter.deep ? weigh<false, true> : weigh<false, false>)(pairs, at, nullptr, 0);
                    }
                }
                if (theirs && x >= ahead) spread(pairs, x - ahead, window.at(y + dy) + x - ahead, window.stride);
            }
        }
        if (mine) finish(planes, y, window.at(y), window.stride, result + y * width * 3);
    }
}

}  // namespace

void bilateral(const uint8_t* picture, int64_t height, int64_t width, int64_t radius, double color, double space,
               uint8_t* result) {
    const Planes planes(picture, height, width, radius);
    const Filter filter(radius, color, space);
    int64_t rows = height;
#if defined(_OPENMP)
    rows = std::max(kRows, (height + omp_get_max_threads() - 1) / omp_get_max_threads());
#endif
    const int64_t bands = (height + rows - 1) / rows;
#pragma omp parallel for schedule(static) if (bands > 1)
    for (int64_t k = 0; k < bands; k++) band(planes, filter, k * rows, std::min(height, (k + 1) * rows), result);
}

CD_FUNCTION(bilateral, &bilateral)

}  // namespace cd
