// A launch: blocks, one after the other on each of several host threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "block.h"

namespace cd::emulator {

constexpr size_t kMaxShared = 227 * 1024;

// Shared memory of a block: exactly so long, full of NaN, and under the address sanitizer with guards around.
class SharedMemory {
  public:
    explicit SharedMemory(size_t size) {
#if defined(__SANITIZE_THREAD__)
        pages_ = std::make_unique<Pages>(size);
        data = pages_->data();
#else
        void* got = nullptr;
        if (posix_memalign(&got, 128, size) != 0) throw std::bad_alloc();
        memory_.reset(static_cast<char*>(got));
        data = memory_.get();
#endif
        memset(data, 0xFF, size);
    }
    char* data;

  private:
#if defined(__SANITIZE_THREAD__)
    std::unique_ptr<Pages> pages_;
#else
    struct Free {
        void operator()(char* p) const { free(p); }
    };
    std::unique_ptr<char, Free> memory_;
#endif
};

class Worker {
  public:
    Worker(dim3 grid, unsigned threads, size_t shared, const std::function<void()>& body, void* ended)
        : fibers_(threads), slots_(2 * threads), warp_counts_(2 * warps(threads)), warp_objects_(2 * warps(threads)),
          grid_(grid), threads_(threads), shared_(shared), body_(body), ended_(ended) {}

    // Runs one block and throws what is wrong with it.
    void run(uint64_t number) {
#if defined(__SANITIZE_THREAD__)
        stacks_ = std::make_unique<Pages>(threads_ * kStack);
#else
        if (!stacks_) stacks_ = std::make_unique<Pages>(threads_ * kStack);
#endif
        const SharedMemory dynamic(shared_), fixed(kStaticShared);
#if defined(__SANITIZE_ADDRESS__)
        __asan_poison_memory_region(fixed.data, kStaticShared);
#endif
        Block b{};
        b.index = dim3(number % grid_.x, number / grid_.x % grid_.y, number / (uint64_t{grid_.x} * grid_.y));
        b.threads_of = dim3(threads_);
        b.blocks_of = grid_;
        b.threads = b.live = threads_;
        b.warps = warps(threads_);
        b.fibers = fibers_.data();
        b.slots = slots_.data();
        b.warp_live = warp_counts_.data();
        b.warp_waiting = warp_counts_.data() + b.warps;
        for (unsigned w = 0; w < b.warps; w++) {
            b.warp_live[w] = std::min(kWarp, threads_ - w * kWarp);
            b.warp_waiting[w] = 0;
        }
        b.warp_objects = warp_objects_.data();
        b.dynamic_shared = dynamic.data;
        b.static_shared = fixed.data;
        b.body = &body_;
        b.ended = ended_;
        const std::string error = run(b);
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(fixed.data, kStaticShared);
#endif
        if (!error.empty())
            throw std::runtime_error("block (" + std::to_string(b.index.x) + ", " + std::to_string(b.index.y) + ", " +
                                     std::to_string(b.index.z) + "): " + error);
    }

  private:
    static unsigned warps(unsigned threads) { return (threads + kWarp - 1) / kWarp; }

    CD_UNSEEN std::string run(Block& b) {
        block = &b;
#if defined(__SANITIZE_THREAD__)
        b.scheduler_thread = __tsan_get_current_fiber();
#endif
        start_fibers(b, stacks_->data());
        run_fibers(b);
#if defined(__SANITIZE_THREAD__)
        for (unsigned i = 0; i < b.threads; i++) __tsan_destroy_fiber(b.fibers[i].thread);
#endif
        block = nullptr;
        return b.error;
    }

    std::vector<Fiber> fibers_;
    std::vector<Slot> slots_;
    std::vector<unsigned> warp_counts_;
    std::vector<char> warp_objects_;
    dim3 grid_;
    unsigned threads_;
    size_t shared_;
    const std::function<void()>& body_;
    void* ended_;
    std::unique_ptr<Pages> stacks_;
};

// With its template arguments.
template <auto kKernel>
std::string kernel_name() {
    return __PRETTY_FUNCTION__;
}

// The bytes of a kernel's arguments, eight at a time: every address among them is one of these.
template <class... Arguments>
std::vector<uint64_t> words_of(const Arguments&... arguments) {
    std::vector<uint64_t> words;
    const auto add = [&](const void* from, size_t size) {
        const size_t at = words.size();
        words.resize(at + (size + 7) / 8);
        memcpy(words.data() + at, from, size);
    };
    (add(&arguments, sizeof arguments), ...);
    return words;
}

struct Launch {
    std::string kernel;
    dim3 grid;
    unsigned threads;
    size_t shared;
    std::vector<uint64_t> words;
    std::function<void()> body;
};

// Where it is not null, launches are written down instead of made.
inline std::vector<Launch>* recorded = nullptr;

inline void run(const Launch& launch) {
    const dim3 grid = launch.grid;
    const unsigned threads = launch.threads;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    char ended = 0;
    std::atomic<uint64_t> next{0};
    std::exception_ptr error;
    std::mutex lock;
    auto work = [&] {
        try {
            Worker worker(grid, threads, launch.shared, launch.body, &ended);
            for (uint64_t number; (number = next++) < blocks;) worker.run(number);
        } catch (...) {
            const std::lock_guard<std::mutex> hold(lock);
            if (!error) error = std::current_exception();
            next = blocks;
        }
    };
#if defined(__SANITIZE_THREAD__)
    work();  // every CUDA thread is a thread to the race detector already
    __tsan_acquire(&ended);
#else
    std::vector<std::thread> helpers;
    const uint64_t several = std::min<uint64_t>(blocks, std::max(1u, std::thread::hardware_concurrency()));
    for (uint64_t i = 1; i < several; i++) helpers.emplace_back(work);
    work();
    for (std::thread& helper : helpers) helper.join();
#endif
    if (error) std::rethrow_exception(error);
}

inline void launch(Launch one) {
    const dim3 grid = one.grid;
    if (one.threads == 0 || one.threads > 1024 || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535)
        throw std::runtime_error("invalid configuration");
    if (one.shared > kMaxShared) throw std::runtime_error("too much dynamic shared memory");
    if (recorded != nullptr)
        recorded->push_back(std::move(one));
    else
        run(one);
}

}  // namespace cd::emulator
