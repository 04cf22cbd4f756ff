#include "adamw.h"

#include <cmath>

#include "common/operator.h"

namespace cd {
namespace {

// Elements that one thread takes at a time.
constexpr int64_t kBlock = 4096;

CD_KERNEL void block_step(float* CD_RESTRICT value, const float* CD_RESTRICT grad, float* CD_RESTRICT exp_avg,
                          float* CD_RESTRICT exp_avg_sq, float* CD_RESTRICT ema, int64_t n, AdamW s) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float g = grad[i];
        const float mean = exp_avg[i] + s.grad_rate * (g - exp_avg[i]);
        const float square = s.beta2 * exp_avg_sq[i] + s.square_rate * g * g;
        const float p = value[i] * s.keep - s.step_size * mean / (std::sqrt(square) * s.inverse_root + s.eps);
        exp_avg[i] = mean;
        exp_avg_sq[i] = square;
        value[i] = p;
        ema[i] += s.ema_rate * (p - ema[i]);
    }
}

CD_KERNEL void block_copy(const float* CD_RESTRICT value, int64_t n, bf16* CD_RESTRICT copy) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) copy[i] = narrow<bf16>(value[i]);
}

}  // namespace

void adamw_ema(const std::vector<Parameter>& parameters, AdamW step) {
    // All parameters in one parallel region: waking the threads for each of hundreds would cost as much as
    // their steps. first[i] is the number of blocks before parameter i.
    std::vector<int64_t> first(parameters.size() + 1, 0);
    int64_t elements = 0;
    for (size_t i = 0; i < parameters.size(); i++) {
        first[i + 1] = first[i] + (parameters[i].size + kBlock - 1) / kBlock;
        elements += parameters[i].size;
    }
#pragma omp parallel for schedule(static) if (elements >= kParallelElements)
    for (int64_t k = 0; k < first.back(); k++) {
        const auto i = static_cast<size_t>(std::upper_bound(first.begin(), first.end(), k) - first.begin() - 1);
        const Parameter& p = parameters[i];
        const int64_t at = (k - first[i]) * kBlock, n = std::min(kBlock, p.size - at);
        block_step(p.value + at, p.grad + at, p.exp_avg + at, p.exp_avg_sq + at, p.ema + at, n, step);
        if (p.copy != nullptr) block_copy(p.value + at, n, p.copy + at);
    }
}

template <>
struct Read<AdamW> : ReadMembers<AdamW, float, float, float, float, float, float, float, float> {};

// `groups`: addresses of the parameters, gradients, both moments, averages and, or empty, copies.
CD_FUNCTION(adamw_ema, [](const std::vector<std::vector<int64_t>>& groups, const std::vector<int64_t>& sizes, AdamW step) {
    const auto at = [&](size_t group, size_t i) { return reinterpret_cast<float*>(groups.at(group).at(i)); };
    std::vector<Parameter> parameters;
    for (size_t i = 0; i < sizes.size(); i++) {
        bf16* copy = groups.at(5).empty() ? nullptr : reinterpret_cast<bf16*>(at(5, i));
        parameters.push_back({at(0, i), at(1, i), at(2, i), at(3, i), at(4, i), copy, sizes[i]});
    }
    adamw_ema(parameters, step);
})

}  // namespace cd
