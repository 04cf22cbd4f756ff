// Warp-level matrix instructions (mma.sync, ldmatrix) and asynchronous copies (cp.async) of sm_80 and later.
#pragma once

#include "device/numbers.h"

#if !defined(__CUDACC__)
#include "emulator/tensor_core.h"
#endif

namespace cd::cuda {

// d (16 x 8, fp32) += a (16 x 16) b (16 x 8). Of d and a, lane l holds rows l/4 and l/4 + 8; two neighbouring
// elements share a register.
template <class T>
CD_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#if defined(__CUDACC__)
#define CD_MMA(T, name)                                                                                            \
    template <>                                                                                                    \
    CD_DEVICE void mma<T>(float(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) {                         \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},"    \
                     "{%8,%9},{%0,%1,%2,%3};\n"                                                                    \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                              \
    }
CD_MMA(bf16, "bf16")
CD_MMA(fp16, "f16")
#undef CD_MMA
#else
template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulator::mma_m16n8k16(d, a, b0, b1, [](uint32_t bits) { return widen(T{static_cast<uint16_t>(bits)}); });
}
#endif

// Four 8 x 8 matrices: lanes 8m .. 8m + 7 point at the rows of matrix m, in shared memory.
template <bool kTransposed>
CD_DEVICE void ldmatrix(uint32_t (&to)[4], const void* row) {
#if defined(__CUDACC__)
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if (kTransposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
#else
    emulator::ldmatrix_x4<kTransposed>(to, row);
#endif
}

// 16 bytes on their way from global to shared memory; zeros instead where not `present`.
CD_DEVICE void copy_async(void* to, const void* from, bool present) {
#if defined(__CUDACC__)
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;\n" ::"r"(at), "l"(from), "r"(present ? 16 : 0) : "memory");
#else
    emulator::copy_async(to, present ? from : nullptr);
#endif
}

// Ends a group of copies.
CD_DEVICE void commit_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
    emulator::commit_copies();
#endif
}

// Waits until at most the latest `pending` groups of this thread are on their way.
template <int pending>
CD_DEVICE void wait_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
#else
    emulator::wait_copies(pending);
#endif
}

CD_DEVICE float exp2_fast(float x) {
#if defined(__CUDACC__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

}  // namespace cd::cuda
