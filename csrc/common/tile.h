// Rows in tiles of four vectors, and how results reach memory.
//
// Loops that the compiler vectorises keep sums and half-made results in memory as soon as several rows or several
// results are in work together, and the first cache then takes longer than the memory.
//
// Results larger than the caches go around them. A plain store first reads the line it is about to overwrite, a third
// of the traffic of an operator that reads one tensor and writes one, and evicts lines that somebody may still want.
#pragma once

#include "common/vector.h"

namespace cd {

// Two vectors, or two pairs of them. A pair of vectors is the least that is read and written: as many elements as one
// vector has places of 16 bits.
template <class V>
struct Two {
    V low, high;

    Two() = default;
    CD_INLINE Two(V a, V b) : low(a), high(b) {}
    CD_INLINE Two(float value) {
        if constexpr (std::is_class_v<V>) {
            low = high = V(value);
        } else {
            low = high = V{} + value;
        }
    }
    CD_INLINE Two& operator+=(const Two& other) {
        low += other.low, high += other.high;
        return *this;
    }
    CD_INLINE friend Two operator+(const Two& a, const Two& b) { return {a.low + b.low, a.high + b.high}; }
    CD_INLINE friend Two operator-(const Two& a, const Two& b) { return {a.low - b.low, a.high - b.high}; }
    CD_INLINE friend Two operator*(const Two& a, const Two& b) { return {a.low * b.low, a.high * b.high}; }
};

// In fp32. The order of elements within a pair of vectors depends on the type that it was read from: that of memory but
// for bf16, where the even ones come first. Two bf16 are taken out of their 32 bits by a shift and a mask and put back
// likewise, while the vectors of another width that the order of memory needs cost half of a pass.
template <int N>
using Pair = Two<Vector<float, N>>;
using Tile = Two<Pair<kLanes>>;

constexpr int kTile = kSize<Tile>;

CD_INLINE float sum_of(float v) { return v; }
template <class V>
CD_INLINE float sum_of(const Two<V>& v) {
    if constexpr (std::is_class_v<V>) {
        return sum_of(v.low + v.high);
    } else {
        return detail::sum<kSize<V> / 2>(v.low + v.high, detail::Lanes<V>{});
    }
}

template <class V>
CD_INLINE Two<V> absolute(const Two<V>& v) {
    if constexpr (std::is_class_v<V>) {
        return {absolute(v.low), absolute(v.high)};
    } else {
        return {detail::floats(detail::bits(v.low) & 0x7FFFFFFFu), detail::floats(detail::bits(v.high) & 0x7FFFFFFFu)};
    }
}

// V is a Pair, a Tile, or a float for what is left of a row.
template <class V = Tile, class T>
CD_INLINE V read(const T* from) {
    if constexpr (std::is_same_v<V, float>) {
        return load(*from);
    } else if constexpr (std::is_class_v<decltype(V::low)>) {
        using Half = decltype(V::low);
        return {read<Half>(from), read<Half>(from + kSize<Half>)};
    } else {
        constexpr int n = kSize<V> / 2;
        if constexpr (std::is_same_v<T, bf16>) {
            const auto pairs = detail::at<Vector<uint32_t, n>>(from);
            return {detail::floats(pairs << 16), detail::floats(pairs & 0xFFFF0000u)};
        } else if constexpr (std::is_same_v<T, fp16>) {
            return {detail::widened_fp16<n>(from), detail::widened_fp16<n>(from + n)};
        } else {
            return {detail::at<Vector<float, n>>(from), detail::at<Vector<float, n>>(from + n)};
        }
    }
}

template <bool Streamed, class T>
CD_INLINE void write(float v, T* to) {
    *to = narrow<T>(v);
}
template <bool Streamed, class V, class T>
CD_INLINE void write(const Two<V>& v, T* to) {
    constexpr int n = kSize<V>;
    if constexpr (std::is_class_v<V>) {
        write<Streamed>(v.low, to);
        write<Streamed>(v.high, to + n);
    } else if constexpr (std::is_same_v<T, bf16>) {
        detail::put<Streamed>(detail::pairs_bf16(v.low, v.high), to);
    } else if constexpr (std::is_same_v<T, fp16>) {
        detail::put<Streamed>(detail::narrowed_fp16(v.low), to);
        detail::put<Streamed>(detail::narrowed_fp16(v.high), to + n);
    } else {
        detail::put<Streamed>(v.low, to);
        detail::put<Streamed>(v.high, to + n);
    }
}

// What it reads as once it is stored in type T, and the writing of that, for which nothing is left to round.
template <class T, class V>
CD_INLINE Two<V> rounded(const Two<V>& v) {
    if constexpr (std::is_class_v<V>) {
        return {rounded<T>(v.low), rounded<T>(v.high)};
    } else if constexpr (std::is_same_v<T, bf16>) {
        return {detail::nearest_bf16(v.low), detail::nearest_bf16(v.high)};
    } else if constexpr (std::is_same_v<T, fp16>) {
        fp16 stored[kSize<Two<V>>];
        write<false>(v, stored);
        return read<Two<V>>(stored);
    } else {
        return v;
    }
}
template <bool Streamed, class V, class T>
CD_INLINE void write_rounded(const Two<V>& v, T* to) {
    if constexpr (std::is_class_v<V>) {
        write_rounded<Streamed>(v.low, to);
        write_rounded<Streamed>(v.high, to + kSize<V>);
    } else if constexpr (std::is_same_v<T, bf16>) {
        detail::put<Streamed>(detail::bits(v.low) >> 16 | detail::bits(v.high), to);
    } else {
        write<Streamed>(v, to);
    }
}

// Whether elements of T come in the order of memory.
template <class T, class V>
constexpr bool kInOrder = !std::is_same_v<T, bf16> || std::is_same_v<V, float>;

// In which order tiles are that come of elements of several types, fp32 and one other.
template <class... T>
using Order = std::conditional_t<(std::is_same_v<T, bf16> || ...), bf16, float>;

// What goes with elements of type As in a row, and back. The row is of that type or, whatever it is, of fp32.
template <class As, class V = Tile, class T>
CD_INLINE V read_as(const T* from) {
    if constexpr (!std::is_same_v<T, float>) {
        return read<V>(from);
    } else if constexpr (std::is_same_v<V, float>) {
        return *from;
    } else if constexpr (std::is_class_v<decltype(V::low)>) {
        using Half = decltype(V::low);
        return {read_as<As, Half>(from), read_as<As, Half>(from + kSize<Half>)};
    } else {
        const V v = read<V>(from);
        if constexpr (!kInOrder<As, V>) {
            const detail::Lanes<decltype(V::low)> lanes;
            return {detail::every_second<0>(v.low, v.high, lanes), detail::every_second<1>(v.low, v.high, lanes)};
        }
        return v;
    }
}
template <class As>
CD_INLINE void write_as(float v, float* to) {
    *to = v;
}
template <class As, bool Streamed = false, class V, class T>
CD_INLINE void write_as(const Two<V>& v, T* to) {
    if constexpr (!std::is_same_v<T, float> || !std::is_same_v<As, bf16>) {
        write<Streamed>(v, to);
    } else if constexpr (std::is_class_v<V>) {
        write_as<As, Streamed>(v.low, to);
        write_as<As, Streamed>(v.high, to + kSize<V>);
    } else {
        const detail::Lanes<V> lanes;
        detail::put<Streamed>(detail::in_turn<0>(v.low, v.high, lanes), to);
        detail::put<Streamed>(detail::in_turn<1>(v.low, v.high, lanes), to + kSize<V>);
    }
}

// Asks for the tile at this address, which need not exist.
template <class T>
CD_INLINE void fetch(const T* from) {
    for (size_t k = 0; k < kTile * sizeof(T); k += 64) __builtin_prefetch(reinterpret_cast<const char*>(from) + k);
}

// Results from this size on are streamed. A reader that comes at once still finds smaller ones in cache.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Whether a result of n elements is streamed: by whole cache lines, at which its rows, all equally long, must start.
template <class T>
bool streams([[maybe_unused]] const T* result, [[maybe_unused]] int64_t n, [[maybe_unused]] int64_t row) {
#if defined(__SSE2__)
    constexpr int64_t size = sizeof(T);
    return kTile * size % 64 == 0 && n * size >= kStreamBytes && row * size % 64 == 0 &&
           reinterpret_cast<uintptr_t>(result) % 64 == 0;
#else
    return false;
#endif
}

// Calls run(std::true_type) or run(std::false_type).
template <class Run>
void with_flag(bool flag, Run run) {
    if (flag) {
        run(std::true_type{});
    } else {
        run(std::false_type{});
    }
}

}  // namespace cd
