// How the operators on CUDA devices are called.
#pragma once

#include <cstdint>

namespace cd::cuda {

using Stream = void*;  // a cudaStream_t

// Of latents, tokens and heads; everything typed float is fp32.
enum class Dtype : int { fp32 = 0, bf16 = 1, fp16 = 2 };

}  // namespace cd::cuda
