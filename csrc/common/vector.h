// Rows in tiles of four vectors, in explicit vectors, and how results reach memory.
//
// Loops that the compiler vectorises keep sums and half-made results in memory as soon as several rows or several
// results are in work together, and the first cache then takes longer than the memory.
//
// Results larger than the caches go around them. A plain store first reads the line it is about to overwrite, a third
// of the traffic of an operator that reads one tensor and writes one, and evicts lines that somebody may still want.
// This is the only place with intrinsics.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "common/kernel.h"

namespace cd {

namespace detail {
template <class T, int N>
struct VectorOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};
}  // namespace detail
template <class T, int N>
using Vector = typename detail::VectorOf<T, N>::type;

// Floats in a vector of the instruction set that is compiled for.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

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

template <class V>
constexpr int kSize = sizeof(V) / sizeof(float);
constexpr int kTile = kSize<Tile>;

namespace detail {

template <class To, class From>
CD_INLINE To at(const From* address) {
    To value;
    std::memcpy(&value, address, sizeof value);
    return value;
}

template <class V>
using BitsOf = Vector<uint32_t, kSize<V>>;
template <class V>
CD_INLINE BitsOf<V> bits(V value) {
    return at<BitsOf<V>>(&value);
}
template <class U>
CD_INLINE auto floats(U value) {
    return at<Vector<float, kSize<U>>>(&value);
}

template <class V, int... I>
CD_INLINE V shuffled(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, BitsOf<V>{I...});
#endif
}
// Of elements in the order of memory, the even ones (Odd = 0) or the odd ones; and back, the lower or the upper half.
template <int Odd, class V, int... I>
CD_INLINE V every_second(V a, V b, std::integer_sequence<int, I...>) {
    return shuffled(a, b, std::integer_sequence<int, (2 * I + Odd)...>{});
}
template <int Upper, class V, int... I>
CD_INLINE V in_turn(V a, V b, std::integer_sequence<int, I...>) {
    constexpr int n = sizeof...(I);
    return shuffled(a, b, std::integer_sequence<int, ((Upper * n + I) / 2 + I % 2 * n)...>{});
}

template <int Step, class V, int... I>
CD_INLINE float sum(V v, std::integer_sequence<int, I...> lanes) {
    if constexpr (Step == 0) {
        return v[0];
    } else {
        return sum<Step / 2>(v + shuffled(v, v, std::integer_sequence<int, (I ^ Step)...>{}), lanes);
    }
}

template <class V>
using Lanes = std::make_integer_sequence<int, kSize<V>>;

// The bits of fp16 in 32 bits each, below zeros; and back from below copies of the sign. GCC makes seven or eight
// instructions of either conversion for SSE2.
template <int N>
CD_INLINE Vector<int32_t, N> spread(const fp16* from) {
#if defined(__SSE2__)
    if constexpr (N == 4) {
        const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
        const __m128i spread = _mm_unpacklo_epi16(halves, _mm_setzero_si128());
        return at<Vector<int32_t, 4>>(&spread);
    }
#endif
    return __builtin_convertvector((at<Vector<uint16_t, N>>(from)), Vector<int32_t, N>);
}
template <class I>
CD_INLINE Vector<uint16_t, kSize<I>> packed(I value) {
    using H = Vector<uint16_t, kSize<I>>;
#if defined(__SSE2__)
    if constexpr (kSize<I> == 4) {
        const __m128i packed = _mm_packs_epi32(at<__m128i>(&value), _mm_setzero_si128());
        return at<H>(&packed);
    }
#endif
    return __builtin_convertvector(value, H);
}

// The scalar functions of element.h by vectors, where the instruction set has none of its own; in signed integers, which
// SSE2 can compare.
template <int N>
CD_INLINE Vector<float, N> widened_fp16(const fp16* from) {
#if defined(__AVX512F__)
    if constexpr (N == 16) return _mm512_maskz_cvtph_ps(0xFFFF, at<__m256i>(from));
#endif
#if defined(__F16C__)
    if constexpr (N == 8) return _mm256_cvtph_ps(at<__m128i>(from));
    if constexpr (N == 4) return _mm_cvtph_ps(_mm_cvtsi64_si128(at<int64_t>(from)));
#elif defined(__aarch64__)
    if constexpr (N == 4) return vcvt_f32_f16(at<float16x4_t>(from));
#endif
    using I = Vector<int32_t, N>;
    const I all = spread<N>(from), rest = all & 0x7FFF;
    const I normal = (rest << 13) + (112 << 23) + ((rest >= 0x7C00) & (112 << 23));
    const auto small = __builtin_convertvector(rest, Vector<float, N>) * 0x1p-24f;
    return floats((rest < 0x0400 ? at<I>(&small) : normal) | (all & 0x8000) << 16);
}

template <class V>
CD_INLINE Vector<uint16_t, kSize<V>> narrowed_fp16(V value) {
#if defined(__F16C__)
    using H = Vector<uint16_t, kSize<V>>;
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#if defined(__AVX512F__)
    if constexpr (kSize<V> == 16) {
        const __m256i narrow = _mm512_maskz_cvtps_ph(0xFFFF, value, kNearest);
        return at<H>(&narrow);
    }
#endif
    if constexpr (kSize<V> == 8) {
        const __m128i narrow = _mm256_cvtps_ph(value, kNearest);
        return at<H>(&narrow);
    }
    if constexpr (kSize<V> == 4) {
        const __m128i narrow = _mm_cvtps_ph(value, kNearest);
        return at<H>(&narrow);
    }
#elif defined(__aarch64__)
    if constexpr (kSize<V> == 4) return vreinterpret_u16_f16(vcvt_f16_f32(value));
#endif
    using I = Vector<int32_t, kSize<V>>;
    const I all = at<I>(&value), rest = all & 0x7FFFFFFF;
    const I normal = (rest - (112 << 23) + 0xFFF + (rest >> 13 & 1)) >> 13;
    const V beside_half = floats(rest) + 0.5f;
    const I small = at<I>(&beside_half) - (126 << 23);
    const I large = 0x7C00 + ((rest > 0x7F800000) & 0x0200);
    const I size = rest >= 0x477FF000 ? large : rest < 0x38800000 ? small : normal;
    return packed(size | (all >> 16 & -0x8000));
}

template <class V>
CD_INLINE BitsOf<V> rounded_bf16(V value) {
    const BitsOf<V> all = bits(value);
    return value != value ? all | 0x400000u : all + 0x7FFFu + (all >> 16 & 1u);
}

template <bool Streamed, class V, class T>
CD_INLINE void put(V value, T* to) {
#if defined(__SSE2__)
    if constexpr (Streamed) {
#if defined(__AVX512F__)
        if constexpr (sizeof(V) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), at<__m512i>(&value));
#endif
#if defined(__AVX__)
        if constexpr (sizeof(V) == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), at<__m256i>(&value));
#endif
        if constexpr (sizeof(V) == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), at<__m128i>(&value));
    }
#endif
    std::memcpy(to, &value, sizeof value);
}

}  // namespace detail

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
        detail::put<Streamed>((detail::rounded_bf16(v.low) >> 16) | (detail::rounded_bf16(v.high) & 0xFFFF0000u), to);
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
        return {detail::floats(detail::rounded_bf16(v.low) & 0xFFFF0000u),
                detail::floats(detail::rounded_bf16(v.high) & 0xFFFF0000u)};
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

// What goes with elements of T in an fp32 row, and back.
template <class T, class V = Tile>
CD_INLINE V read_as(const float* from) {
    if constexpr (std::is_same_v<V, float>) {
        return *from;
    } else if constexpr (std::is_class_v<decltype(V::low)>) {
        using Half = decltype(V::low);
        return {read_as<T, Half>(from), read_as<T, Half>(from + kSize<Half>)};
    } else {
        const V v = read<V>(from);
        if constexpr (std::is_same_v<T, bf16>) {
            const detail::Lanes<decltype(V::low)> lanes;
            return {detail::every_second<0>(v.low, v.high, lanes), detail::every_second<1>(v.low, v.high, lanes)};
        }
        return v;
    }
}
template <class T>
CD_INLINE void write_as(float v, float* to) {
    *to = v;
}
template <class T, bool Streamed = false, class V>
CD_INLINE void write_as(const Two<V>& v, float* to) {
    if constexpr (std::is_class_v<V>) {
        write_as<T, Streamed>(v.low, to);
        write_as<T, Streamed>(v.high, to + kSize<V>);
    } else if constexpr (std::is_same_v<T, bf16>) {
        const detail::Lanes<V> lanes;
        detail::put<Streamed>(detail::in_turn<0>(v.low, v.high, lanes), to);
        detail::put<Streamed>(detail::in_turn<1>(v.low, v.high, lanes), to + kSize<V>);
    } else {
        write<Streamed>(v, to);
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
