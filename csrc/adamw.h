// A step of AdamW and of an exponential moving average of the parameters on CPU, in one pass over memory.
#pragma once

#include <vector>

#include "common/kernel.h"

namespace cd {

// One parameter of `size` elements with what belongs to it; null copy: none is wanted.
struct Parameter {
    float* value;
    const float* grad;
    float* exp_avg;
    float* exp_avg_sq;
    float* ema;
    bf16* copy;
    int64_t size;
};

// value *= keep; exp_avg += grad_rate (grad - exp_avg); exp_avg_sq = beta2 exp_avg_sq + (1 - beta2) grad^2;
// value -= step_size exp_avg / (sqrt(exp_avg_sq) inverse_root + eps); ema += ema_rate (value - ema).
struct AdamW {
    float keep, grad_rate, beta2, square_rate, step_size, inverse_root, eps, ema_rate;
};

void adamw_ema(const std::vector<Parameter>& parameters, AdamW step);

}  // namespace cd
