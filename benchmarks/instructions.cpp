// Runs every CPU kernel once at a small fixed shape and has callgrind write down how many instructions it
// took. Built and run by instructions.py.
#include <valgrind/callgrind.h>

#include <cstdint>
#include <string>
#include <vector>

#include "adaln.h"
#include "adamw.h"
#include "dm_loss.h"
#include "qk_norm_rope.h"

namespace {

constexpr int64_t kRows = 40, kWidth = 1000, kSize = kRows * kWidth;  // neither fits chunks and vectors evenly

// Numbers between -1 and 1 that are the same everywhere.
template <class T>
std::vector<T> numbers(int64_t n, uint32_t seed) {
    std::vector<T> all(static_cast<size_t>(n));
    for (T& one : all) {
        seed = seed * 1664525u + 1013904223u;
        one = cd::narrow<T>(static_cast<float>(seed >> 8) / 8388608.0f - 1.0f);
    }
    return all;
}

template <class Run>
void count(const std::string& name, Run run) {
    run();  // the first call resolves symbols
    CALLGRIND_ZERO_STATS;
    run();
    CALLGRIND_DUMP_STATS_AT(name.c_str());
}

template <class T>
void all(const std::string& element) {
    const auto a = numbers<T>(kSize, 1), b = numbers<T>(kSize, 2), c = numbers<T>(kSize, 3), d = numbers<T>(kSize, 4);
    const auto row = numbers<float>(3 * kWidth, 5);
    std::vector<T> to(kSize), to2(kSize);
    std::vector<float> stats(2 * kSize), sums(3 * kWidth), wide(kSize);
    const cd::Layout layout{1, kRows, kWidth};
    const cd::Modulation gate{row.data(), kWidth}, shift{row.data() + kWidth, kWidth},
        scale{row.data() + 2 * kWidth, kWidth};
    float *sum = sums.data(), *st = stats.data();
    count("adaln_forward " + element,
          [&] { cd::adaln_forward(layout, a.data(), shift, scale, 1e-6f, to.data(), st); });
    count("adaln_backward " + element, [&] {
        cd::adaln_backward(layout, b.data(), a.data(), st, scale, to.data(), sum, sum + kWidth);
    });
    count("gated_adaln_forward " + element, [&] {
        cd::gated_adaln_forward(layout, a.data(), b.data(), gate, shift, scale, 1e-6f, to.data(), to2.data(), st);
    });
    count("gated_adaln_backward " + element, [&] {
        cd::gated_adaln_backward(layout, b.data(), c.data(), a.data(), d.data(), st, gate, scale, to.data(),
                                 to2.data(), sum, sum + kWidth, sum + 2 * kWidth);
    });

    const cd::Heads heads{1, kRows, 7, 128, kWidth};
    const auto angles = numbers<float>(2 * kRows * 128, 6);
    const cd::Tables tables{angles.data(), angles.data() + kRows * 128, false, 0, 0, 0, 0, 0, 0};
    count("norm_rope_forward " + element,
          [&] { cd::norm_rope_forward(heads, a.data(), row.data(), tables, 1e-6f, to.data(), st); });
    count("norm_rope_backward " + element, [&] {
        cd::norm_rope_backward(heads, b.data(), a.data(), st, row.data(), tables, to.data(), sum);
    });

    cd::Tables neighbours = tables;
    neighbours.interleaved = true;
    count("norm_rope_forward interleaved " + element,
          [&] { cd::norm_rope_forward(heads, a.data(), row.data(), neighbours, 1e-6f, to.data(), st); });
    count("norm_rope_backward interleaved " + element, [&] {
        cd::norm_rope_backward(heads, b.data(), a.data(), st, row.data(), neighbours, to.data(), sum);
    });

    const cd::Samples samples{2, 1, kSize / 2, 1, nullptr};
    const float coefficients[] = {0.3f, 0.7f, 0.4f, 0.6f}, sigma[] = {0.5f, 0.7f};
    const cd::Denoised<T> raw{d.data(), coefficients};
    count("renoise " + element,
          [&] { cd::renoise(samples, a.data(), b.data(), nullptr, sigma, wide.data()); });
    count("vsd " + element, [&] {
        cd::vsd(samples, a.data(), b.data(), c.data(), a.data(), raw, 5.0f, to.data(), sum);
    });
    count("vsd_gradient " + element, [&] { cd::vsd_gradient(samples, a.data(), sigma, to.data()); });
    count("squared_error " + element, [&] { cd::squared_error(samples, a.data(), b.data(), raw, sum); });
    count("squared_error_gradient " + element,
          [&] { cd::squared_error_gradient(samples, sigma, a.data(), b.data(), raw, to.data()); });
}

}  // namespace

int main() {
    all<float>("fp32");
    all<cd::bf16>("bf16");
    all<cd::fp16>("fp16");
    auto p = numbers<float>(kSize, 1), m = numbers<float>(kSize, 2), v = numbers<float>(kSize, 3), e = p;
    const auto g = numbers<float>(kSize, 4);
    std::vector<cd::bf16> copy(kSize);
    count("adamw_ema fp32", [&] {
        cd::adamw_ema({{p.data(), g.data(), m.data(), v.data(), e.data(), copy.data(), kSize}},
                      {0.999f, 0.1f, 0.999f, 0.001f, 1e-4f, 1.0f, 1e-8f, 0.001f});
    });
    return 0;
}
