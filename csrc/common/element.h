// The element types of tensors: fp32, bf16 and fp16. Kernels read and write through load() and narrow()
// and compute in fp32. Both are plain integer arithmetic, so that a loop over them vectorises at every
// instruction set; rounding is to nearest, ties to even, and NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

#define CD_INLINE inline __attribute__((always_inline))

namespace cd {

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

CD_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

CD_INLINE float of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

CD_INLINE float load(float value) { return value; }

CD_INLINE float load(bf16 value) { return of_bits(static_cast<uint32_t>(value.bits) << 16); }

CD_INLINE float load(fp16 value) {
    const uint32_t rest = value.bits & 0x7FFFu;
    // Exponents are 112 apart; all ones (infinity, NaN) stay all ones. Below the normal range the
    // mantissa counts units of 2^-24.
    const uint32_t normal = (rest << 13) + (rest >= 0x7C00u ? 224u << 23 : 112u << 23);
    const uint32_t small = bits_of(static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-24f);
    return of_bits((rest < 0x0400u ? small : normal) | (value.bits & 0x8000u) << 16);
}

template <class T>
T narrow(float value);

template <>
CD_INLINE float narrow<float>(float value) {
    return value;
}

// The bf16 is the upper half.
CD_INLINE uint32_t rounded_to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
    return value != value ? bits | 0x400000u : rounded;
}

template <>
CD_INLINE bf16 narrow<bf16>(float value) {
    return {static_cast<uint16_t>(rounded_to_bf16(value) >> 16)};
}

template <>
CD_INLINE fp16 narrow<fp16>(float value) {
    const uint32_t bits = bits_of(value), rest = bits & 0x7FFFFFFFu;
    const uint32_t normal = (rest + 0xFFFu + (rest >> 13 & 1u) - (112u << 23)) >> 13;
    // Adding 1/2, whose last place is 2^-24, lets the adder do the rounding below the normal range.
    const uint32_t small = bits_of(of_bits(rest) + 0.5f) - bits_of(0.5f);
    const uint32_t large = rest > 0x7F800000u ? 0x7E00u : 0x7C00u;
    const uint32_t size = rest >= 0x477FF000u ? large : rest < 0x38800000u ? small : normal;
    return {static_cast<uint16_t>(size | (bits >> 16 & 0x8000u))};
}

}  // namespace cd
