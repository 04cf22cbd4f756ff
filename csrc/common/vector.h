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

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed to inlined functions only
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
};

// A tile in fp32: whole cache lines in every element type. The order of its elements depends on the type: that of memory
// but for bf16, where of every sixteen the even ones come first. A pair of bf16 is taken out of its 32 bits by a shift and
// a mask and put back likewise, while the vectors of another width that the order of memory needs cost half of a pass.
using Tile = Two<Two<f8>>;
constexpr int kTile = 32;

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

namespace detail {

CD_INLINE Two<f8> read16(const float* from) { return {at<f8>(from), at<f8>(from + 8)}; }
CD_INLINE Two<f8> read16(const bf16* from) {
    const u8 pairs = at<u8>(from);
    return {floats(pairs << 16), floats(pairs & 0xFFFF0000u)};
}
CD_INLINE Two<f8> read16(const fp16* from) { return {widened_fp16(at<h8>(from)), widened_fp16(at<h8>(from + 8))}; }

template <bool Streamed>
CD_INLINE void write16(const Two<f8>& v, float* to) {
    put<Streamed>(v.low, to);
    put<Streamed>(v.high, to + 8);
}
template <bool Streamed>
CD_INLINE void write16(const Two<f8>& v, bf16* to) {
    put<Streamed>((rounded_bf16(v.low) >> 16) | (rounded_bf16(v.high) & 0xFFFF0000u), to);
}
template <bool Streamed>
CD_INLINE void write16(const Two<f8>& v, fp16* to) {
    put<Streamed>(narrowed_fp16(v.low), to);
    put<Streamed>(narrowed_fp16(v.high), to + 8);
}

template <class T>
CD_INLINE Two<f8> rounded16(const Two<f8>& v) {
    if constexpr (std::is_same_v<T, bf16>) {
        return {floats(rounded_bf16(v.low) & 0xFFFF0000u), floats(rounded_bf16(v.high) & 0xFFFF0000u)};
    } else if constexpr (std::is_same_v<T, fp16>) {
        return {widened_fp16(narrowed_fp16(v.low)), widened_fp16(narrowed_fp16(v.high))};
    } else {
        return v;
    }
}

template <class T>
CD_INLINE Two<f8> read16_as(const float* from) {
    const Two<f8> v = read16(from);
    if constexpr (std::is_same_v<T, bf16>) {
        return {__builtin_shufflevector(v.low, v.high, 0, 2, 4, 6, 8, 10, 12, 14),
                __builtin_shufflevector(v.low, v.high, 1, 3, 5, 7, 9, 11, 13, 15)};
    }
    return v;
}
template <class T>
CD_INLINE void write16_as(const Two<f8>& v, float* to) {
    if constexpr (std::is_same_v<T, bf16>) {
        put<false>(__builtin_shufflevector(v.low, v.high, 0, 8, 1, 9, 2, 10, 3, 11), to);
        put<false>(__builtin_shufflevector(v.low, v.high, 4, 12, 5, 13, 6, 14, 7, 15), to + 8);
    } else {
        write16<false>(v, to);
    }
}

}  // namespace detail

template <class T>
CD_INLINE Tile read(const T* from) {
    return {detail::read16(from), detail::read16(from + 16)};
}
template <bool Streamed, class T>
CD_INLINE void write(const Tile& tile, T* to) {
    detail::write16<Streamed>(tile.low, to);
    detail::write16<Streamed>(tile.high, to + 16);
}

// The tile as it reads once it is stored in type T.
template <class T>
CD_INLINE Tile rounded(const Tile& tile) {
    return {detail::rounded16<T>(tile.low), detail::rounded16<T>(tile.high)};
}

// What goes with a tile of T in an fp32 row, and back.
template <class T>
CD_INLINE Tile read_as(const float* from) {
    return {detail::read16_as<T>(from), detail::read16_as<T>(from + 16)};
}
template <class T>
CD_INLINE void write_as(const Tile& tile, float* to) {
    detail::write16_as<T>(tile.low, to);
    detail::write16_as<T>(tile.high, to + 16);
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
