// Switching between stacks: what lets one host thread be all threads of a block.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// What the emulator does behind a kernel's back must not be seen by the race detector, nor be inlined into
// code that is.
#if defined(__SANITIZE_THREAD__)
#define CD_UNSEEN __attribute__((no_sanitize("thread"), noinline))
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* object);
void __tsan_release(void* object);
}
#else
#define CD_UNSEEN
#endif

namespace cd::emulator {

#if defined(__x86_64__)

struct Context {
    void* stack_pointer;
};

// Saves the callee-saved registers of the System V calling convention and swaps stacks.
__attribute__((naked, noinline, no_sanitize("thread"))) inline void swap_stacks(void** /*from*/, void* /*to*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "movq %rsp, (%rdi)\n"
        "movq %rsi, %rsp\n"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
        "ret");
}

CD_UNSEEN inline void switch_context(Context& from, Context& to) {
    swap_stacks(&from.stack_pointer, to.stack_pointer);
}

CD_UNSEEN inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + size - 64);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context.stack_pointer = top;
}

#else

struct Context {
    ucontext_t state;
};

inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = size;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}

#endif

// Pages of zeros, given back at the end of the scope. Mapping, unlike malloc, also makes the race detector
// forget who used the addresses before.
class Pages {
  public:
    explicit Pages(size_t size) : size_(size == 0 ? 1 : size) {
        void* got = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (got == MAP_FAILED) throw std::bad_alloc();
        data_ = static_cast<char*>(got);
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    ~Pages() { munmap(data_, size_); }
    char* data() const { return data_; }

  private:
    size_t size_;
    char* data_;
};

}  // namespace cd::emulator
