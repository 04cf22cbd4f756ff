// The dtypes of tensors on the device. Arithmetic is fp32 throughout: the narrow ones are for memory only, so
// widening and narrowing is all they can do.
#pragma once

#include <cstring>

#include "device/launch.h"

namespace cd::cuda {

struct bf16 {
    uint16_t bits;
};

struct fp16 {
    uint16_t bits;
};

#if !defined(__CUDACC__)
inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
#endif

CD_DEVICE float widen(float x) { return x; }

CD_DEVICE float widen(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
#if defined(__CUDACC__)
    return __uint_as_float(bits);
#else
    return float_of_bits(bits);
#endif
}

CD_DEVICE float widen(fp16 x) {
#if defined(__CUDACC__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
#else
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7FFF;
    if (magnitude >= 0x7C00) return float_of_bits(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    // Exponents differ by a constant: a product with a power of two, also for subnormal numbers.
    const float value = float_of_bits(magnitude << 13) * float_of_bits(0x77800000);
    return float_of_bits(bits_of_float(value) | sign);
#endif
}

// Rounds to the nearest, ties to even. NaN stays NaN.
template <class T>
CD_DEVICE T narrow(float x);

template <>
CD_DEVICE float narrow<float>(float x) {
    return x;
}

template <>
CD_DEVICE bf16 narrow<bf16>(float x) {
#if defined(__CUDACC__)
    bf16 value;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
    return value;
#else
    const uint32_t bits = bits_of_float(x);
    if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
#endif
}

template <>
CD_DEVICE fp16 narrow<fp16>(float x) {
#if defined(__CUDACC__)
    fp16 value;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
    return value;
#else
    const uint32_t bits = bits_of_float(x), magnitude = bits & 0x7FFFFFFF;
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    if (magnitude > 0x7F800000) return {static_cast<uint16_t>(sign | 0x7E00)};
    if (magnitude >= 0x477FF000) return {static_cast<uint16_t>(sign | 0x7C00)};  // 65520 and more
    if (magnitude < 0x38800000) {
        // Subnormal: the sum's last place is that of the result, so the addition rounds.
        const uint32_t sum = bits_of_float(float_of_bits(magnitude) + float_of_bits(0x3F000000));
        return {static_cast<uint16_t>(sign | (sum - 0x3F000000))};
    }
    const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1) - 0x38000000;
    return {static_cast<uint16_t>(sign | rounded >> 13)};
#endif
}

// Two neighbours in memory, `low` first.
template <class T>
CD_DEVICE uint32_t narrow_pair(float low, float high);

#if defined(__CUDACC__)
template <>
CD_DEVICE uint32_t narrow_pair<bf16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <>
CD_DEVICE uint32_t narrow_pair<fp16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#else
template <class T>
uint32_t narrow_pair(float low, float high) {
    return narrow<T>(low).bits | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
}
#endif

// `count` consecutive elements, moved in pieces of up to 16 bytes.
template <class T, int count>
struct alignas(count * sizeof(T) < 16 ? count * sizeof(T) : 16) Vector {
    T at[count];
};

template <int count, class T>
CD_DEVICE void load(const T* from, float (&to)[count]) {
    const auto vector = *reinterpret_cast<const Vector<T, count>*>(from);
#pragma unroll
    for (int i = 0; i < count; i++) to[i] = widen(vector.at[i]);
}

template <int count, class T>
CD_DEVICE void store(T* to, const float (&from)[count]) {
    Vector<T, count> vector;
#pragma unroll
    for (int i = 0; i < count; i++) vector.at[i] = narrow<T>(from[i]);
    *reinterpret_cast<Vector<T, count>*>(to) = vector;
}

// Elements of T in 16 bytes.
template <class T>
constexpr int kWide = 16 / sizeof(T);

}  // namespace cd::cuda
