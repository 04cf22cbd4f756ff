// Single vectors of the instruction set that is compiled for: their bits, their places, their conversions to and from
// narrow numbers, and their way to memory, around the caches or not. The only place with intrinsics.
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

template <class V>
constexpr int kSize = sizeof(V) / sizeof(float);

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
    return __builtin_shuffle(a, b, decltype(a == b){I...});
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
// Each of the lower half beside the one of the upper half.
template <class V, int... I>
CD_INLINE V beside_upper_half(V v, std::integer_sequence<int, I...>) {
    return shuffled(v, v, std::integer_sequence<int, (I / 2 + I % 2 * static_cast<int>(sizeof...(I)) / 2)...>{});
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

// What it reads as once it is stored as bf16. The instructions for that take numbers below the least normal one for zeros.
template <class V>
CD_INLINE V nearest_bf16(V value) {
#if defined(__AVX512BF16__)
    if constexpr (kSize<V> == 16) {
        const __m256bh narrow = _mm512_cvtneps_pbh(value);
        return floats(__builtin_convertvector((at<Vector<uint16_t, 16>>(&narrow)), BitsOf<V>) << 16);
    }
#endif
    return floats(rounded_bf16(value) & 0xFFFF0000u);
}

// Pairs of bf16 from what becomes the first and the second one of each.
template <class V>
CD_INLINE BitsOf<V> pairs_bf16(V first, V second) {
#if defined(__AVX512BF16__)
    if constexpr (kSize<V> == 16) {
        const __m512bh all = _mm512_cvtne2ps_pbh(second, first);
        const auto apart = at<Vector<uint16_t, 32>>(&all), pairs = beside_upper_half(apart, std::make_integer_sequence<int, 32>{});
        return at<BitsOf<V>>(&pairs);
    }
#endif
    return rounded_bf16(first) >> 16 | (rounded_bf16(second) & 0xFFFF0000u);
}

// a * b + c where the product is exact, so that it is the same with one rounding as with two.
template <class V>
CD_INLINE V multiply_add(V a, V b, V c) {
#if defined(__FMA__)
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
        const __m512 sum = _mm512_fmadd_ps(a, b, c);
        return at<V>(&sum);
    }
#endif
    if constexpr (sizeof(V) == 32) {
        const __m256 sum = _mm256_fmadd_ps(a, b, c);
        return at<V>(&sum);
    }
#elif defined(__aarch64__)
    if constexpr (sizeof(V) == 16) {
        const float32x4_t sum = vfmaq_f32(at<float32x4_t>(&c), at<float32x4_t>(&a), at<float32x4_t>(&b));
        return at<V>(&sum);
    }
#endif
    return a * b + c;
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

// Makes streamed results visible to other threads; called at the end of a thread's share.
inline void stream_end() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace cd
