// Per-head RMSNorm and rotary embedding on CUDA devices. Addresses are of device memory on the current device; work is queued on `stream` and not
// waited for. Throws std::runtime_error when a kernel cannot be launched, and std::invalid_argument for a dtype or sizes
// that are not served.
#pragma once

#include "device/call.h"

namespace cd::cuda {

// Null data: no rotation. With frames, the tables are factored over a grid of frames x height x width tokens, as
// in qk_norm_rope.h; without, they are [1 or batch, length, head_dim].
struct Tables {
    const float *cos, *sin;
    bool per_sample;
    int frames, height, width, t, h, w;
    bool interleaved = false;  // neighbours turn with each other, not channels half a head apart
};

// One of q and k: batch * length tokens of `heads` dense heads, `stride` elements apart; the other tensors are
// dense. rstd is [tokens, heads]. partial is scratch of [norm_rope_chunks, head_dim]. dx and dweight are left out where null.
struct HeadsForward {
    int64_t tokens, heads, stride;
    const void* x;
    const float* weight;
    void* out;
    float* rstd;
};
struct HeadsBackward {
    int64_t tokens, heads, stride;
    const void *grad, *x;
    const float *weight, *rstd;
    void* dx;
    float *dweight, *partial;
};

// forward or backward is filled in, for q and k.
struct NormRope {
    int64_t length, head_dim;
    Tables tables;
    float eps;
    HeadsForward forward[2];
    HeadsBackward backward[2];
};
void norm_rope_forward(Dtype dtype, const NormRope& call, Stream stream);
void norm_rope_backward(Dtype dtype, const NormRope& call, Stream stream);

// Chunks of tokens that are added up on their own, for the longer of q and k.
int64_t norm_rope_chunks(int64_t tokens);

}  // namespace cd::cuda
