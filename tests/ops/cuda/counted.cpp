// Counts what kernels ask of memory that is watched. Compiled with -fsanitize=thread, the emulated operators call the
// functions below wherever they access memory; linked without, they meet these and not the race detector's.
#include <cstddef>
#include <cstdint>

#define CD_COUNTER(result) extern "C" __attribute__((no_sanitize("thread"))) result

namespace {

struct Watched {
    uintptr_t begin, end;
    uint64_t* asked;
    unsigned char* touched;
};

constexpr int kMost = 64;
Watched watched[kMost];
int count = 0;

__attribute__((no_sanitize("thread"))) void access(const void* address, size_t size) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    for (int i = 0; i < count; i++) {
        const Watched& one = watched[i];
        if (at < one.begin || at >= one.end) continue;
        *one.asked += size;
        for (uintptr_t byte = at; byte < at + size && byte < one.end; byte++) one.touched[byte - one.begin] = 1;
        return;
    }
}

}  // namespace

// From now on the bytes that are read and written of so much memory are added to `asked`, and a byte of `touched` is
// set for each that is. False where too much is watched already.
extern "C" __attribute__((visibility("default"))) bool watch(const void* memory, size_t size, uint64_t* asked,
                                                             unsigned char* touched) {
    if (count == kMost) return false;
    const auto begin = reinterpret_cast<uintptr_t>(memory);
    watched[count++] = {begin, begin + size, asked, touched};
    return true;
}

extern "C" __attribute__((visibility("default"))) void watch_nothing() { count = 0; }

// Plain accesses, of every size and kind that the compiler tells apart.
#define CD_SIZED(name, size) \
    CD_COUNTER(void) __tsan_##name##size(void* address) { access(address, size); }
#define CD_SIZES(name) CD_SIZED(name, 2) CD_SIZED(name, 4) CD_SIZED(name, 8) CD_SIZED(name, 16)
CD_SIZED(read, 1)
CD_SIZED(write, 1)
CD_SIZES(read)
CD_SIZES(write)
CD_SIZES(unaligned_read)
CD_SIZES(unaligned_write)
CD_COUNTER(void) __tsan_read_range(void* address, unsigned long size) { access(address, size); }
CD_COUNTER(void) __tsan_write_range(void* address, unsigned long size) { access(address, size); }

// The emulator's own business.
CD_COUNTER(void) __tsan_init() {}
CD_COUNTER(void) __tsan_func_entry(void*) {}
CD_COUNTER(void) __tsan_func_exit(void*) {}
CD_COUNTER(void) __tsan_vptr_update(void*, void*) {}
CD_COUNTER(void*) __tsan_get_current_fiber() { return nullptr; }
CD_COUNTER(void*) __tsan_create_fiber(unsigned) { return nullptr; }
CD_COUNTER(void) __tsan_destroy_fiber(void*) {}
CD_COUNTER(void) __tsan_switch_to_fiber(void*, unsigned) {}
CD_COUNTER(void) __tsan_acquire(void*) {}
CD_COUNTER(void) __tsan_release(void*) {}

// Nothing runs beside: the emulator leaves it to the race detector to be several threads.
#define CD_ATOMIC(bits)                                                                                      \
    CD_COUNTER(uint##bits##_t) __tsan_atomic##bits##_load(const volatile void* at, int) {                    \
        return *static_cast<const volatile uint##bits##_t*>(at);                                             \
    }                                                                                                        \
    CD_COUNTER(void) __tsan_atomic##bits##_store(volatile void* at, uint##bits##_t value, int) {             \
        *static_cast<volatile uint##bits##_t*>(at) = value;                                                  \
    }                                                                                                        \
    CD_COUNTER(uint##bits##_t) __tsan_atomic##bits##_fetch_add(volatile void* at, uint##bits##_t more, int) { \
        const auto was = *static_cast<volatile uint##bits##_t*>(at);                                         \
        *static_cast<volatile uint##bits##_t*>(at) = was + more;                                             \
        return was;                                                                                          \
    }
CD_ATOMIC(8)
CD_ATOMIC(32)
CD_ATOMIC(64)
