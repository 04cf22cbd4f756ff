// Results larger than the caches go around them. A plain store first reads the line it is about to
// overwrite, a third of the traffic of an operator that reads one tensor and writes one, and evicts lines
// that somebody may still want. This is the only place with intrinsics.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "common/element.h"

namespace cd {

// Results from this size on are streamed. A reader that comes at once still finds smaller ones in cache.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Copies finished bytes to memory past the caches. Meanwhile as many bytes are fetched from each of the
// addresses `next`: what will be read after this keeps the memory busy in both directions.
template <int N>
inline void stream_bytes(const void* from, void* to, int64_t bytes, const void* const (&next)[N]) {
    const char* source = static_cast<const char*>(from);
    char* target = static_cast<char*>(to);
#if defined(__SSE2__)
    const int64_t misaligned = reinterpret_cast<uintptr_t>(target) % 16;
    const int64_t head = misaligned == 0 ? 0 : std::min<int64_t>(bytes, 16 - misaligned);
    std::memcpy(target, source, static_cast<size_t>(head));
    int64_t i = head;
    const auto stream16 = [&](int64_t at) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(target + at),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + at)));
    };
    for (; i + 64 <= bytes; i += 64) {
        for (int n = 0; n < N; n++) _mm_prefetch(static_cast<const char*>(next[n]) + i, _MM_HINT_T0);
        for (int k = 0; k < 64; k += 16) stream16(i + k);
    }
    for (; i + 16 <= bytes; i += 16) stream16(i);
    source += i, target += i, bytes -= i;
#endif
    std::memcpy(target, source, static_cast<size_t>(bytes));
}

// Makes streamed bytes visible to other threads; call it at the end of a thread's share.
inline void stream_end() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// Where one thread writes the rows of a result: straight to their place or, for a large result, to a
// row of its own that is then streamed there. Rows are addressed by the index of their first element.
template <class T>
class RowWriter {
  public:
    RowWriter(T* result, int64_t elements, int64_t longest_row)
        : result_(result), streaming_(elements * static_cast<int64_t>(sizeof(T)) >= kStreamBytes) {
        if (streaming_) buffer_.reset(new T[static_cast<size_t>(longest_row)]);
    }
    ~RowWriter() {
        if (streaming_) stream_end();
    }
    RowWriter(const RowWriter&) = delete;
    RowWriter& operator=(const RowWriter&) = delete;

    // Where to put the row; it may be read back until done() is called for it.
    T* row(int64_t at) { return streaming_ ? buffer_.get() : result_ + at; }

    // `next`: where rows read soon begin.
    template <class... Next>
    void done(int64_t at, int64_t width, const Next*... next) {
        if (!streaming_) return;
        const void* const all[] = {next...};
        stream_bytes(buffer_.get(), result_ + at, width * static_cast<int64_t>(sizeof(T)), all);
    }

  private:
    T* result_;
    bool streaming_;
    std::unique_ptr<T[]> buffer_;
};

}  // namespace cd
