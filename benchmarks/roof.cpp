// Times every CPU kernel beside a loop that reads and writes as much and computes nothing. Built and run by roof.py.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "adaln.h"
#include "common/tile.h"
#include "dm_loss.h"
#include "qk_norm_rope.h"

namespace {

constexpr int64_t kRows = 2048, kCachedRows = 24, kWidth = 4096, kHead = 128;
constexpr int kTurns = 21;

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// Reads `in` and streams as many tensors to `out`, each of so many bytes, a cache line of all of them at a time.
template <size_t Reads, size_t Writes>
void move(const std::vector<const char*>& in, const std::vector<char*>& out, int64_t bytes) {
    using Line = cd::Vector<uint32_t, 16>;
    const int64_t count = bytes / static_cast<int64_t>(sizeof(Line));
    uint32_t read = 0;
#pragma omp parallel reduction(^ : read)
    {
        Line sum{};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count; i++) {
            Line line{};
#pragma GCC unroll 8
            for (size_t k = 0; k < Reads; k++) line ^= reinterpret_cast<const Line*>(in[k])[i];
            if (Writes == 0) sum ^= line;
#pragma GCC unroll 8
            for (size_t k = 0; k < Writes; k++) {
                for (int part = 0; part < 16; part += cd::kLanes) {
                    cd::Vector<uint32_t, cd::kLanes> lanes;
                    std::memcpy(&lanes, reinterpret_cast<const char*>(&line) + part * 4, sizeof lanes);
                    cd::detail::put<true>(lanes, out[k] + i * 64 + part * 4);
                }
            }
        }
        cd::stream_end();
        read ^= sum[0];
    }
    static volatile uint32_t kept;
    kept = read;
}

// Memory from the start of a page.
struct Tensor {
    std::vector<char> memory;
    char* data;
    explicit Tensor(int64_t bytes) : memory(static_cast<size_t>(bytes) + 4096) {
        data = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 4095) / 4096 * 4096);
    }
    template <class T>
    void fill(uint32_t seed) {  // with numbers between -1 and 1
        for (int64_t i = 0; i < kRows * kWidth; i++) {
            seed = seed * 1664525u + 1013904223u;
            reinterpret_cast<T*>(data)[i] = cd::narrow<T>(static_cast<float>(seed >> 8) / 8388608.0f - 1.0f);
        }
    }
};

template <class T>
void all(const char* element, std::vector<Tensor>& tensors) {
    for (uint32_t k = 0; k < tensors.size(); k++) tensors[k].fill<T>(k);
    const auto in = [&](int k) { return reinterpret_cast<const T*>(tensors[k].data); };
    const auto out = [&](int k) { return reinterpret_cast<T*>(tensors[5 + k].data); };
    std::vector<float> row(kWidth, 0.25f), stats(2 * kRows * kWidth / kHead, 1.0f), sums(3 * kWidth),
        tables(2 * kRows * kHead, 0.5f);
    const cd::Modulation row_of{row.data(), kWidth};
    float *st = stats.data(), *sum = sums.data();
    const float coefficients[] = {0.3f, 0.7f}, slope[] = {0.5f};

    // Kernels by how many tensors they read and write, for so many rows of kWidth elements.
    const auto time = [&](const char* name, auto reads, auto writes, const std::function<void(int64_t)>& kernel) {
        std::vector<const char*> from;
        std::vector<char*> to;
        for (int k = 0; k < reads; k++) from.push_back(tensors[k].data);
        for (int k = 0; k < writes; k++) to.push_back(tensors[5 + k].data);
        const auto traffic = [&] { move<reads, writes>(from, to, kRows * kWidth * static_cast<int64_t>(sizeof(T))); };
        std::vector<double> ours, roof, cached;
        for (int turn = 0; turn < kTurns; turn++) {
            // Twice, the second one timed, as the other benchmarks do (harness.py).
            for (int timed = 0; timed < 2; timed++) {
                const double start = seconds();
                kernel(kRows);
                if (timed) ours.push_back(seconds() - start);
            }
            for (int timed = 0; timed < 2; timed++) {
                const double start = seconds();
                traffic();
                if (timed) roof.push_back(seconds() - start);
            }
        }
        const int threads = omp_get_max_threads();
        omp_set_num_threads(1);
        for (int turn = 0; turn < 3 * kTurns; turn++) {
            const double start = seconds();
            kernel(kCachedRows);
            cached.push_back(seconds() - start);
        }
        omp_set_num_threads(threads);
        std::printf("%s,%s,%d,%d,%.4f,%.4f,%.4f\n", name, element, static_cast<int>(reads), static_cast<int>(writes),
                    median(ours) * 1e3, median(roof) * 1e3, median(cached) * 1e9 / (kCachedRows * kWidth));
        std::fflush(stdout);
    };
    constexpr std::integral_constant<int, 0> none{};
    constexpr std::integral_constant<int, 1> one{};
    constexpr std::integral_constant<int, 2> two{};
    constexpr std::integral_constant<int, 3> three{};
    constexpr std::integral_constant<int, 4> four{};
    constexpr std::integral_constant<int, 5> five{};

    time("adaln_modulate fwd", one, one, [&](int64_t rows) {
        cd::adaln_forward({1, rows, kWidth}, in(0), row_of, row_of, 1e-6f, out(0), st);
    });
    time("adaln_modulate bwd", two, one, [&](int64_t rows) {
        cd::adaln_backward({1, rows, kWidth}, in(0), in(1), st, row_of, out(0), sum, sum + kWidth);
    });
    time("gated_residual_adaln fwd", two, two, [&](int64_t rows) {
        cd::gated_adaln_forward({1, rows, kWidth}, in(0), in(1), row_of, row_of, row_of, 1e-6f, out(0), out(1), st);
    });
    time("gated_residual_adaln bwd", four, two, [&](int64_t rows) {
        cd::gated_adaln_backward({1, rows, kWidth}, in(0), in(1), in(2), in(3), st, row_of, row_of, out(0), out(1), sum,
                                 sum + kWidth, sum + 2 * kWidth);
    });
    const cd::Tables full{tables.data(), tables.data() + kRows * kHead, false, 0, 0, 0, 0, 0, 0};
    time("qk_norm_rope fwd", one, one, [&](int64_t rows) {
        cd::norm_rope_forward({1, rows, kWidth / kHead, kHead, kWidth}, in(0), row.data(), full, 1e-6f, out(0), st);
    });
    time("qk_norm_rope bwd", two, one, [&](int64_t rows) {
        cd::norm_rope_backward({1, rows, kWidth / kHead, kHead, kWidth}, in(0), in(1), st, row.data(), full, out(0), sum);
    });
    const auto latents = [](int64_t rows) { return cd::Samples{1, 1, rows * kWidth, 1, nullptr}; };
    const cd::Denoised<T> raw{in(4), coefficients}, plain{nullptr, nullptr};
    time("vsd_loss fwd, guided, raw outputs", five, one, [&](int64_t rows) {
        cd::vsd(latents(rows), in(0), in(1), in(2), in(3), raw, 5.0f, out(0), sum);
    });
    time("vsd_loss fwd, x0", three, one, [&](int64_t rows) {
        cd::vsd(latents(rows), in(0), in(1), in(2), static_cast<const T*>(nullptr), plain, 0.0f, out(0), sum);
    });
    time("vsd_loss bwd", one, one,
         [&](int64_t rows) { cd::vsd_gradient(latents(rows), in(0), slope, out(0)); });
    time("fake_score_loss fwd", two, none,
         [&](int64_t rows) { cd::squared_error(latents(rows), in(0), in(1), plain, sum); });
    time("fake_score_loss bwd", two, one, [&](int64_t rows) {
        cd::squared_error_gradient(latents(rows), slope, in(0), in(1), plain, out(0));
    });
}

}  // namespace

int main() {
    std::vector<Tensor> tensors;  // five to read, two to write
    for (int k = 0; k < 7; k++) tensors.emplace_back(kRows * kWidth * 4);
    all<float>("fp32", tensors);
    all<cd::bf16>("bf16", tensors);
    all<cd::fp16>("fp16", tensors);
    return 0;
}
