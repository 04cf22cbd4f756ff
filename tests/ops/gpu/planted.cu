// What the gates on CUDA kernels must refuse, each for one reason, and one that they must let through.

__global__ void __launch_bounds__(128) clean_kernel(const float* x, float* out) {
    out[threadIdx.x] = 2.0f * x[threadIdx.x];
}

// No arithmetic on 64-bit floats: a conversion alone.
__global__ void __launch_bounds__(128) converting_kernel(const float* x, double* out) { out[threadIdx.x] = x[threadIdx.x]; }

// More numbers than a thread of so large a block has registers, all needed to the end.
__global__ void __launch_bounds__(1024) spilling_kernel(const float* x, float* out) {
    float kept[128], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 128; i++) sum += kept[i] = x[i * 1024 + threadIdx.x];
#pragma unroll
    for (int i = 0; i < 128; i++) out[i * 1024 + threadIdx.x] = kept[i] - sum;
}
