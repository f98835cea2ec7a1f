// What the driver's tests launch. `small.ptx` is NVRTC 12.9's text for compute_80.

extern "C" __global__ void fill(float *to, float value, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = value;
}

extern "C" __global__ void twice(float *to, const float *from, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = 2.0f * from[i];
}

extern "C" __global__ void reverse(float *to, const float *from, unsigned n) {
    __shared__ float part[256];
    unsigned i = threadIdx.x;
    if (i < n) part[i] = from[i];
    __syncthreads();
    if (i < n) to[i] = part[n - 1 - i];
}
