// One thread block: a fiber for every CUDA thread, run in turn until all wait at a barrier or have ended.
//
// A fiber runs until it must wait, so that warps drift apart as far as the barriers let them: a missing one
// gives wrong numbers. Shared memory holds NaN before the kernel writes it. Under ThreadSanitizer every CUDA
// thread is a thread of its own, ordered with others by barriers alone: a missing one is reported as a race,
// within a block as between the blocks of a launch.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __asan_poison_memory_region(const volatile void* from, size_t size);
void __asan_unpoison_memory_region(const volatile void* from, size_t size);
}
#endif

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cd::emulator {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 * 1024;
constexpr size_t kStaticShared = 48 * 1024;
constexpr unsigned kCopiesInFlight = 128;
constexpr unsigned kSharedArrays = 16;

enum class State : unsigned char { ready, at_block_barrier, at_warp_barrier, ended };

// cp.async: 16 bytes on their way from global (null: zeros) to shared memory.
struct Copy {
    void* to;
    const void* from;
    unsigned group;
};

struct Fiber {
    Context context;
    State state;
    dim3 index;
    unsigned rank;
    unsigned warp_barriers, block_barriers;
    const char* barrier;  // where it waits
    Copy copies[kCopiesInFlight];
    unsigned copies_in_flight, copy_groups;
    void* thread;  // of the race detector
};

struct alignas(16) Slot {
    unsigned char bytes[64];
};

// Plain arrays, no containers: their member functions would be seen by the race detector.
struct Block {
    dim3 index, threads_of, blocks_of;
    unsigned threads, warps, live, at_barrier, current;
    Fiber* fibers;
    Slot* slots;  // [2][threads]: what lanes tell each other, for barriers of even and odd number
    unsigned *warp_live, *warp_waiting;
    char* warp_objects;   // [warps][2], and
    char block_objects[2];  // [2]: what the race detector is told barriers are. Two, used in turn: an early
                            // arrival at one barrier must not count as seen by a late leaver of the last.
    char* dynamic_shared;
    char* static_shared;
    size_t static_used;
    const void* static_sites[kSharedArrays];
    char* static_arrays[kSharedArrays];
    unsigned static_count;
    const std::function<void()>* body;
    void* ended;  // what the race detector is told the end of the launch is
    Context scheduler;
    void* scheduler_thread;
    char error[400];
};

inline thread_local Block* block = nullptr;

CD_UNSEEN inline Fiber& fiber() { return block->fibers[block->current]; }
CD_UNSEEN inline unsigned lane() { return block->fibers[block->current].rank % kWarp; }

CD_UNSEEN inline void yield() {
    Block& b = *block;
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(b.scheduler_thread, 1);
#endif
    switch_context(b.fibers[b.current].context, b.scheduler);
}

// Stops the launch; does not return.
CD_UNSEEN inline void fail(const char* what) {
    snprintf(block->error, sizeof block->error, "thread %u: %s", fiber().rank, what);
    yield();
    abort();
}

CD_UNSEEN inline void block_barrier(const char* where) {
    Fiber& me = fiber();
#if defined(__SANITIZE_THREAD__)
    void* object = block->block_objects + me.block_barriers % 2;
    __tsan_release(object);
#endif
    me.block_barriers++;
    me.barrier = where;
    me.state = State::at_block_barrier;
    block->at_barrier++;
    yield();
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(object);
#endif
}

CD_UNSEEN inline void warp_barrier() {
    Fiber& me = fiber();
    const unsigned warp = me.rank / kWarp;
#if defined(__SANITIZE_THREAD__)
    void* object = block->warp_objects + warp * 2 + me.warp_barriers % 2;
    __tsan_release(object);
#endif
    me.warp_barriers++;
    me.state = State::at_warp_barrier;
    block->warp_waiting[warp]++;
    yield();
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(object);
#endif
}

// What the lanes of a warp tell each other: put, then get from any lane until the next exchange.
class Exchange {
  public:
    template <class T>
    CD_UNSEEN explicit Exchange(const T& mine) {
        static_assert(sizeof(T) <= sizeof(Slot));
        slots_ = block->slots + (fiber().warp_barriers % 2) * block->threads;
        memcpy(slots_[fiber().rank].bytes, &mine, sizeof(T));
        slots_ += fiber().rank / kWarp * kWarp;
        warp_barrier();
    }
    template <class T>
    CD_UNSEEN T get(unsigned lane) const {
        T value;
        memcpy(&value, slots_[lane].bytes, sizeof(T));
        return value;
    }

  private:
    Slot* slots_;
};

// An array in static shared memory: the same for all threads that come to the same declaration.
CD_UNSEEN inline void* shared_array(const void* site, size_t size) {
    Block& b = *block;
    for (unsigned i = 0; i < b.static_count; i++)
        if (b.static_sites[i] == site) return b.static_arrays[i];
    const size_t padded = (size + 15) / 16 * 16 + 64;  // the gap is what the address sanitizer guards
    if (b.static_count == kSharedArrays || b.static_used + padded > kStaticShared) fail("too much static shared memory");
    char* array = b.static_shared + b.static_used;
    b.static_used += padded;
    b.static_sites[b.static_count] = site;
    b.static_arrays[b.static_count++] = array;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(array, size);
#endif
    return array;
}

CD_UNSEEN inline void fiber_main() {
    (*block->body)();
    fiber().state = State::ended;
#if defined(__SANITIZE_THREAD__)
    __tsan_release(block->ended);
#endif
    yield();
    abort();
}

CD_UNSEEN inline void start_fibers(Block& b, char* stacks) {
    for (unsigned i = 0; i < b.threads; i++) {
        Fiber& f = b.fibers[i];
        f.state = State::ready;
        f.rank = i;
        f.index = dim3(i % b.threads_of.x, i / b.threads_of.x % b.threads_of.y, i / (b.threads_of.x * b.threads_of.y));
        f.warp_barriers = f.block_barriers = f.copies_in_flight = f.copy_groups = 0;
        prepare_context(f.context, stacks + i * kStack, kStack, &fiber_main);
#if defined(__SANITIZE_THREAD__)
        f.thread = __tsan_create_fiber(0);
#endif
    }
}

// Lets the fibers of a warp go on when all that still run wait for each other.
CD_UNSEEN inline bool release_warp(Block& b, unsigned warp) {
    if (b.warp_waiting[warp] == 0 || b.warp_waiting[warp] != b.warp_live[warp]) return false;
    b.warp_waiting[warp] = 0;
    const unsigned last = (warp + 1) * kWarp < b.threads ? (warp + 1) * kWarp : b.threads;
    for (unsigned i = warp * kWarp; i < last; i++)
        if (b.fibers[i].state == State::at_warp_barrier) b.fibers[i].state = State::ready;
    return true;
}

CD_UNSEEN inline bool release_block(Block& b) {
    if (b.at_barrier == 0 || b.at_barrier != b.live) return false;
    const char* where = nullptr;
    for (unsigned i = 0; i < b.threads; i++) {
        Fiber& f = b.fibers[i];
        if (f.state != State::at_block_barrier) continue;
        if (where != nullptr && strcmp(where, f.barrier) != 0) {
            snprintf(b.error, sizeof b.error, "divergent __syncthreads: some threads wait at %s, others at %s", where,
                     f.barrier);
            return false;
        }
        where = f.barrier;
        f.state = State::ready;
    }
    b.at_barrier = 0;
    return true;
}

// Runs the block to its end, or until `error` says what is wrong with it.
CD_UNSEEN inline void run_fibers(Block& b) {
    while (b.live != 0 && b.error[0] == 0) {
        bool progress = false;
        for (unsigned i = 0; i < b.threads && b.error[0] == 0; i++) {
            Fiber& f = b.fibers[i];
            if (f.state != State::ready) continue;
            progress = true;
            b.current = i;
#if defined(__SANITIZE_THREAD__)
            __tsan_switch_to_fiber(f.thread, 1);
#endif
            switch_context(b.scheduler, f.context);
            if (f.state == State::ended) {
                b.live--;
                b.warp_live[i / kWarp]--;
            }
            if (release_warp(b, i / kWarp)) i = i / kWarp * kWarp - 1;  // this warp first, as far as it gets
        }
        progress = release_block(b) || progress;
        if (!progress && b.live != 0 && b.error[0] == 0)
            snprintf(b.error, sizeof b.error,
                     "divergent barrier: of %u running threads, %u wait at __syncthreads and the others elsewhere", b.live,
                     b.at_barrier);
    }
}

}  // namespace cd::emulator
