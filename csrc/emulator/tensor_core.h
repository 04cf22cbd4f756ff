// Host twins of the warp-level matrix instructions and of asynchronous copies.
#pragma once

#include "cuda.h"

namespace cd::emulator {

// mma.sync.aligned.m16n8k16.row.col: d (16 x 8) += a (16 x 16) b (16 x 8). Lane l holds rows l/4 and l/4 + 8 of
// a and d, column l/4 of b; `widen` turns the 16 bits of one element into its value.
template <class Widen>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Widen widen) {
    struct Registers {
        uint32_t a[4], b[2];
    };
    const Exchange warp(Registers{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const unsigned row = lane() / 4, column = lane() % 4 * 2;
    float upper[16], lower[16];
    for (unsigned quad = 0; quad < 4; quad++) {
        const auto from = warp.get<Registers>(row * 4 + quad);
        for (unsigned high = 0; high < 2; high++) {
            const unsigned k = quad * 2 + high;
            upper[k] = widen(from.a[0] >> 16 * high);
            lower[k] = widen(from.a[1] >> 16 * high);
            upper[k + 8] = widen(from.a[2] >> 16 * high);
            lower[k + 8] = widen(from.a[3] >> 16 * high);
        }
    }
    for (unsigned c = 0; c < 2; c++) {
        for (unsigned quad = 0; quad < 4; quad++) {
            const auto from = warp.get<Registers>((column + c) * 4 + quad);
            for (unsigned high = 0; high < 2; high++) {
                const unsigned k = quad * 2 + high;
                const float first = widen(from.b[0] >> 16 * high), second = widen(from.b[1] >> 16 * high);
                d[c] += upper[k] * first + upper[k + 8] * second;
                d[c + 2] += lower[k] * first + lower[k + 8] * second;
            }
        }
    }
}

// ldmatrix.sync.aligned.m8n8.x4: lanes 8m .. 8m + 7 point at the rows of 8 x 8 matrix m.
template <bool kTransposed>
void ldmatrix_x4(uint32_t (&to)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix: the address of a row is not aligned to 16 bytes");
    const Exchange warp(static_cast<const uint16_t*>(row));
    const unsigned at = lane() / 4, pair = lane() % 4 * 2;
    for (unsigned m = 0; m < 4; m++) {
        const auto element = [&](unsigned r, unsigned c) { return warp.get<const uint16_t*>(m * 8 + r)[c]; };
        const uint32_t low = kTransposed ? element(pair, at) : element(at, pair);
        const uint32_t high = kTransposed ? element(pair + 1, at) : element(at, pair + 1);
        to[m] = low | high << 16;
    }
}

// 16 bytes, written by whoever is seen to write them (the functions below are not).
inline void write16(void* to, const void* from) {
    for (int i = 0; i < 4; i++)
        static_cast<uint32_t*>(to)[i] = from == nullptr ? 0 : static_cast<const uint32_t*>(from)[i];
}

CD_UNSEEN inline void remember_copy(void* to, const void* from) {
    Fiber& me = fiber();
    if (me.copies_in_flight == kCopiesInFlight) fail("cp.async: more copies in flight than the emulator holds");
    me.copies[me.copies_in_flight++] = {to, from, me.copy_groups};
}

// Takes the oldest copy whose group is complete unless `pending` or fewer groups are.
CD_UNSEEN inline bool finished_copy(unsigned pending, Copy& copy) {
    Fiber& me = fiber();
    if (me.copies_in_flight == 0 || me.copies[0].group + pending >= me.copy_groups) return false;
    copy = me.copies[0];
    me.copies_in_flight--;
    for (unsigned i = 0; i < me.copies_in_flight; i++) me.copies[i] = me.copies[i + 1];
    return true;
}

CD_UNSEEN inline void commit_copies() { fiber().copy_groups++; }

// cp.async: nobody may touch the target between this and the wait, so it holds NaN until then.
inline void copy_async(void* to, const void* from) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
        fail("cp.async: an address is not aligned to 16 bytes");
    for (int i = 0; i < 4; i++) static_cast<uint32_t*>(to)[i] = ~0u;
    remember_copy(to, from);
}

// cp.async.wait_group: at most `pending` of the latest groups are still on their way.
inline void wait_copies(unsigned pending) {
    for (Copy copy; finished_copy(pending, copy);) write16(copy.to, copy.from);
}

}  // namespace cd::emulator
