// Attention on CUDA devices. Addresses are of device memory on the current device; work is queued on `stream` and not
// waited for. Throws std::runtime_error when a kernel cannot be launched, and std::invalid_argument for a dtype or sizes
// that are not served.
#pragma once

#include "device/call.h"

namespace cd::cuda {

// [batch, rows, heads, dim] with a dense last axis; distances in elements. Data and rows are aligned to 16 bytes.
struct Strided {
    void* data = nullptr;
    int64_t batch = 0, row = 0, head = 0;
};

// q, out, grad and dq have `queries` rows, the others `keys`, and neither is 0; dim is a multiple of 8 up to 128; fp32
// is not served. lse and grad_lse (may be null) are [batch, heads, queries]. What only the other direction needs is
// left out, and so are those of dq, dk and dv that are null. scratch is [batch, heads, attention_padded, 2], aligned to 16 bytes.
struct Attention {
    int batch, heads, queries, keys, dim;
    float scale;
    Strided q, k, v, out;
    float* lse = nullptr;
    Strided grad, dq, dk, dv;
    const float* grad_lse = nullptr;
    float* scratch = nullptr;
};
void attention_forward(Dtype dtype, const Attention& call, Stream stream);
void attention_backward(Dtype dtype, const Attention& call, Stream stream);

// Rows of the scratch for so many queries.
int attention_padded(int queries);

}  // namespace cd::cuda
