// Rows in tiles of 32 elements, in explicit vectors, and how results reach memory.
//
// Loops that the compiler vectorises keep sums and half-made results in memory as soon as several rows or several
// results are in work together, and the first cache then takes longer than the memory. Vectors of eight fit every x86 with
// AVX; the compiler splits them elsewhere.
//
// Results larger than the caches go around them. A plain store first reads the line it is about to overwrite, a third
// of the traffic of an operator that reads one tensor and writes one, and evicts lines that somebody may still want.
// This is the only place with intrinsics.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "common/simd.h"

#if defined(__clang__)
#define CD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ::cd::u8{__VA_ARGS__})
#endif

namespace cd {

using f8 = float __attribute__((vector_size(32)));
using u8 = uint32_t __attribute__((vector_size(32)));
using h8 = uint16_t __attribute__((vector_size(16)));

template <class V>
struct Two;
CD_INLINE void splat(float value, f8& to) { to = f8{} + value; }
template <class V>
CD_INLINE void splat(float value, Two<V>& to) {
    splat(value, to.low);
    to.high = to.low;
}
CD_INLINE float sum_of(f8 v) {
    float total = 0.0f;
    for (int j = 0; j < 8; j++) total += v[j];
    return total;
}

CD_INLINE f8 absolute(f8 v) {
    u8 bits;
    std::memcpy(&bits, &v, sizeof bits);
    bits &= 0x7FFFFFFFu;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

template <class V>
struct Two {
    V low, high;

    Two() = default;
    CD_INLINE Two(V a, V b) : low(a), high(b) {}
    CD_INLINE Two(float value) { splat(value, *this); }
    CD_INLINE Two& operator+=(const Two& other) {
        low += other.low, high += other.high;
        return *this;
    }
    CD_INLINE friend Two operator+(const Two& a, const Two& b) { return {a.low + b.low, a.high + b.high}; }
    CD_INLINE friend Two operator-(const Two& a, const Two& b) { return {a.low - b.low, a.high - b.high}; }
    CD_INLINE friend Two operator*(const Two& a, const Two& b) { return {a.low * b.low, a.high * b.high}; }
    CD_INLINE friend float sum_of(const Two& a) { return sum_of(a.low + a.high); }
    CD_INLINE friend Two absolute(const Two& a) { return {absolute(a.low), absolute(a.high)}; }
};

// A tile in fp32: whole cache lines in every element type. The order of its elements depends on the type: that of memory
// but for bf16, where of every sixteen the even ones come first. A pair of bf16 is taken out of its 32 bits by a shift and
// a mask and put back likewise, while the vectors of another width that the order of memory needs cost half of a pass.
using Half = Two<f8>;
using Tile = Two<Half>;
constexpr int kTile = 32, kHalf = 16;

namespace detail {

template <class To, class From>
CD_INLINE To at(const From* address) {
    To value;
    std::memcpy(&value, address, sizeof value);
    return value;
}

template <class T>
CD_INLINE u8 bits(T value) {
    return at<u8>(&value);
}
CD_INLINE f8 floats(u8 value) { return at<f8>(&value); }

// The scalar functions of element.h, eight at a time.
CD_INLINE f8 widened_fp16(h8 value) {
    const u8 all = __builtin_convertvector(value, u8), rest = all & 0x7FFFu;
    const u8 normal = (rest << 13) + (rest >= 0x7C00u ? u8{} + (224u << 23) : u8{} + (112u << 23));
    using i8 = int32_t __attribute__((vector_size(32)));
    const u8 small = bits(__builtin_convertvector(at<i8>(&rest), f8) * 0x1p-24f);
    return floats((rest < 0x0400u ? small : normal) | (all & 0x8000u) << 16);
}

CD_INLINE h8 narrowed_fp16(f8 value) {
    const u8 all = bits(value), rest = all & 0x7FFFFFFFu;
    const u8 normal = (rest + 0xFFFu + (rest >> 13 & 1u) - (112u << 23)) >> 13;
    const u8 small = bits(floats(rest) + 0.5f) - bits_of(0.5f);
    const u8 large = rest > 0x7F800000u ? u8{} + 0x7E00u : u8{} + 0x7C00u;
    const u8 size = rest >= 0x477FF000u ? large : rest < 0x38800000u ? small : normal;
    return __builtin_convertvector(size | (all >> 16 & 0x8000u), h8);
}

CD_INLINE u8 rounded_bf16(f8 value) {
    const u8 all = bits(value);
    return value != value ? all | 0x400000u : all + 0x7FFFu + (all >> 16 & 1u);
}

template <bool Streamed, class V, class T>
CD_INLINE void put(V value, T* to) {
#if defined(__SSE2__)
    if (Streamed) {
        for (size_t k = 0; k < sizeof(V) / 16; k++) {
            __m128i part;
            std::memcpy(&part, reinterpret_cast<const char*>(&value) + 16 * k, 16);
            _mm_stream_si128(reinterpret_cast<__m128i*>(to) + k, part);
        }
        return;
    }
#endif
    std::memcpy(to, &value, sizeof value);
}

}  // namespace detail

CD_INLINE Half read16(const float* from) { return {detail::at<f8>(from), detail::at<f8>(from + 8)}; }
CD_INLINE Half read16(const bf16* from) {
    const u8 pairs = detail::at<u8>(from);
    return {detail::floats(pairs << 16), detail::floats(pairs & 0xFFFF0000u)};
}
CD_INLINE Half read16(const fp16* from) {
    return {detail::widened_fp16(detail::at<h8>(from)), detail::widened_fp16(detail::at<h8>(from + 8))};
}

template <bool Streamed>
CD_INLINE void write16(const Half& v, float* to) {
    detail::put<Streamed>(v.low, to);
    detail::put<Streamed>(v.high, to + 8);
}
template <bool Streamed>
CD_INLINE void write16(const Half& v, bf16* to) {
    detail::put<Streamed>((detail::rounded_bf16(v.low) >> 16) | (detail::rounded_bf16(v.high) & 0xFFFF0000u), to);
}
template <bool Streamed>
CD_INLINE void write16(const Half& v, fp16* to) {
    detail::put<Streamed>(detail::narrowed_fp16(v.low), to);
    detail::put<Streamed>(detail::narrowed_fp16(v.high), to + 8);
}

template <class T>
CD_INLINE Half rounded16(const Half& v) {
    if constexpr (std::is_same_v<T, bf16>) {
        return {detail::floats(detail::rounded_bf16(v.low) & 0xFFFF0000u),
                detail::floats(detail::rounded_bf16(v.high) & 0xFFFF0000u)};
    } else if constexpr (std::is_same_v<T, fp16>) {
        return {detail::widened_fp16(detail::narrowed_fp16(v.low)), detail::widened_fp16(detail::narrowed_fp16(v.high))};
    } else {
        return v;
    }
}

template <class T>
CD_INLINE Half read16_as(const float* from) {
    const Half v = read16(from);
    if constexpr (std::is_same_v<T, bf16>) {
        return {CD_SHUFFLE(v.low, v.high, 0, 2, 4, 6, 8, 10, 12, 14),
                CD_SHUFFLE(v.low, v.high, 1, 3, 5, 7, 9, 11, 13, 15)};
    }
    return v;
}
template <class T, bool Streamed>
CD_INLINE void write16_as(const Half& v, float* to) {
    if constexpr (std::is_same_v<T, bf16>) {
        detail::put<Streamed>(CD_SHUFFLE(v.low, v.high, 0, 8, 1, 9, 2, 10, 3, 11), to);
        detail::put<Streamed>(CD_SHUFFLE(v.low, v.high, 4, 12, 5, 13, 6, 14, 7, 15), to + 8);
    } else {
        write16<Streamed>(v, to);
    }
}

template <class T>
CD_INLINE Tile read(const T* from) {
    return {read16(from), read16(from + 16)};
}
template <bool Streamed, class T>
CD_INLINE void write(const Tile& tile, T* to) {
    write16<Streamed>(tile.low, to);
    write16<Streamed>(tile.high, to + 16);
}

// The tile as it reads once it is stored in type T, and its writing, for which nothing is left to round.
template <class T>
CD_INLINE Tile rounded(const Tile& tile) {
    return {rounded16<T>(tile.low), rounded16<T>(tile.high)};
}
template <bool Streamed, class T>
CD_INLINE void write_rounded(const Tile& tile, T* to) {
    if constexpr (std::is_same_v<T, bf16>) {
        const auto pairs = [](const Half& v) __attribute__((always_inline)) {
            return detail::bits(v.low) >> 16 | detail::bits(v.high);
        };
        detail::put<Streamed>(pairs(tile.low), to);
        detail::put<Streamed>(pairs(tile.high), to + 16);
    } else {
        write<Streamed>(tile, to);
    }
}

// What goes with a tile of T in an fp32 row, and back.
template <class T>
CD_INLINE Tile read_as(const float* from) {
    return {read16_as<T>(from), read16_as<T>(from + 16)};
}
template <class T, bool Streamed = false>
CD_INLINE void write_as(const Tile& tile, float* to) {
    write16_as<T, Streamed>(tile.low, to);
    write16_as<T, Streamed>(tile.high, to + 16);
}

// Asks for the tile at this address, which need not exist.
template <class T>
CD_INLINE void fetch(const T* from) {
#if defined(__SSE2__)
    for (size_t k = 0; k < kTile * sizeof(T); k += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(from) + k, _MM_HINT_T0);
    }
#endif
}

// Results from this size on are streamed. A reader that comes at once still finds smaller ones in cache.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Whether a result of n elements is streamed; its rows, all equally long, must start at every 16th byte.
template <class T>
bool streams(const T* result, int64_t n, int64_t row) {
#if defined(__SSE2__)
    const int64_t size = static_cast<int64_t>(sizeof(T));
    return n * size >= kStreamBytes && row * size % 16 == 0 && reinterpret_cast<uintptr_t>(result) % 16 == 0;
#else
    return false && result != nullptr && n == row;
#endif
}

// Makes streamed results visible to other threads; called at the end of a thread's share.
inline void stream_end() {
#if defined(__SSE2__)
    _mm_sfence();
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
