// The dtypes of tensors on the device. Arithmetic is fp32 throughout: the narrow ones are for memory only, so
// widening and narrowing is all they can do.
#pragma once

#include "common/element.h"
#include "device/launch.h"

namespace cd::cuda {

using cd::bf16;
using cd::fp16;

#if defined(__CUDACC__)
CD_DEVICE float widen(float x) { return x; }

CD_DEVICE float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

CD_DEVICE float widen(fp16 x) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
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
    bf16 value;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
    return value;
}

template <>
CD_DEVICE fp16 narrow<fp16>(float x) {
    fp16 value;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(value.bits) : "f"(x));
    return value;
}
#else
template <class T>
float widen(T x) {
    return cd::load(x);
}

template <class T>
T narrow(float x) {
    return cd::narrow<T>(x);
}
#endif

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
