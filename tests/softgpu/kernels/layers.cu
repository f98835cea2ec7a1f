// Kernels of training steps: none of them may be reported, and their results must be right.
// LayerNorm forward/backward: one block per row, blockDim.x a multiple of 32, <= 1024.
__device__ __forceinline__ float warp_sum(float a) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) a += __shfl_xor_sync(0xffffffffu, a, o);
  return a;
}
__device__ __forceinline__ float warp_max(float a) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, o));
  return a;
}
// Sum over the block; every thread gets the result. s has 32 floats.
__device__ __forceinline__ float block_sum(float a, float* s) {
  const unsigned lane = threadIdx.x & 31u, w = threadIdx.x >> 5, nw = blockDim.x >> 5;
  a = warp_sum(a);
  if (lane == 0u) s[w] = a;
  __syncthreads();
  a = lane < nw ? s[lane] : 0.f;
  a = warp_sum(a);
  __syncthreads();                               // s may be reused by the caller
  return a;
}
__device__ __forceinline__ float block_max(float a, float* s) {
  const unsigned lane = threadIdx.x & 31u, w = threadIdx.x >> 5, nw = blockDim.x >> 5;
  a = warp_max(a);
  if (lane == 0u) s[w] = a;
  __syncthreads();
  a = lane < nw ? s[lane] : -3.402823466e38f;
  a = warp_max(a);
  __syncthreads();
  return a;
}
extern "C" __global__ void layernorm_fwd(const float* __restrict__ x, const float* __restrict__ gamma,
                                         const float* __restrict__ beta, float* __restrict__ y,
                                         float* __restrict__ mean, float* __restrict__ rstd,
                                         unsigned d, float eps) {
  __shared__ float s[32];
  const float* xr = x + (size_t)blockIdx.x * d;
  float a = 0.f;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) a += xr[i];
  const float mu = block_sum(a, s) / (float)d;
  float q = 0.f;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) { const float t = xr[i] - mu; q = fmaf(t, t, q); }
  const float rs = rsqrtf(block_sum(q, s) / (float)d + eps);
  if (threadIdx.x == 0u) { mean[blockIdx.x] = mu; rstd[blockIdx.x] = rs; }
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x)
    y[(size_t)blockIdx.x * d + i] = (xr[i] - mu) * rs * gamma[i] + beta[i];
}
// dx = rstd*(dy*g - mean(dy*g) - xhat*mean(dy*g*xhat)); dgamma/dbeta by atomics into zeroed buffers.
extern "C" __global__ void layernorm_bwd(const float* __restrict__ x, const float* __restrict__ gamma,
                                         const float* __restrict__ dy, const float* __restrict__ mean,
                                         const float* __restrict__ rstd, float* __restrict__ dx,
                                         float* __restrict__ dgamma, float* __restrict__ dbeta, unsigned d) {
  __shared__ float s[32];
  const size_t base = (size_t)blockIdx.x * d;
  const float mu = mean[blockIdx.x], rs = rstd[blockIdx.x];
  float a = 0.f, b = 0.f;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) {
    const float xh = (x[base + i] - mu) * rs, g = dy[base + i] * gamma[i];
    a += g; b = fmaf(g, xh, b);
  }
  const float ma = block_sum(a, s) / (float)d, mb = block_sum(b, s) / (float)d;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) {
    const float xh = (x[base + i] - mu) * rs, dyi = dy[base + i];
    dx[base + i] = rs * (dyi * gamma[i] - ma - xh * mb);
    atomicAdd(&dgamma[i], dyi * xh);
    atomicAdd(&dbeta[i], dyi);
  }
}
// Softmax cross entropy, one block per row; writes loss[row] and dlogits = (p - onehot) * scale.
extern "C" __global__ void softmax_xent(const float* __restrict__ logits, const int* __restrict__ label,
                                        float* __restrict__ loss, float* __restrict__ dlogits,
                                        unsigned c, int ignore_index, float scale) {
  __shared__ float s[32];
  const size_t base = (size_t)blockIdx.x * c;
  const int t = label[blockIdx.x];
  float mx = -3.402823466e38f;
  for (unsigned i = threadIdx.x; i < c; i += blockDim.x) mx = fmaxf(mx, logits[base + i]);
  mx = block_max(mx, s);
  float sum = 0.f;
  for (unsigned i = threadIdx.x; i < c; i += blockDim.x) sum += expf(logits[base + i] - mx);
  sum = block_sum(sum, s);
  const float k = t == ignore_index ? 0.f : scale;
  for (unsigned i = threadIdx.x; i < c; i += blockDim.x) {
    const float p = expf(logits[base + i] - mx) / sum;
    dlogits[base + i] = (p - ((int)i == t ? 1.f : 0.f)) * k;
  }
  if (threadIdx.x == 0u) loss[blockIdx.x] = t == ignore_index ? 0.f : logf(sum) + mx - logits[base + (unsigned)t];
}
// bf16/fp16 storage, fp32 accumulate, no header needed: bit conversion for bf16, PTX cvt for fp16.
__device__ __forceinline__ float bf16_lo(unsigned u) { return __uint_as_float(u << 16); }
__device__ __forceinline__ float bf16_hi(unsigned u) { return __uint_as_float(u & 0xffff0000u); }
__device__ __forceinline__ unsigned short f2bf16(float f) {   // round to nearest even
  const unsigned u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (unsigned short)0x7fffu;
  return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
// x: bf16 [rows, m], m % 8 == 0; 8 values per 16-byte load.
extern "C" __global__ void velora_compress_bf16(const unsigned short* __restrict__ x,
                                                const float* __restrict__ v,
                                                unsigned short* __restrict__ z,
                                                unsigned rows, unsigned m) {
  const unsigned lane = threadIdx.x & 31u;
  const unsigned row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (row >= rows) return;
  const uint4* x8 = reinterpret_cast<const uint4*>(x + (size_t)row * m);
  const float4* v4 = reinterpret_cast<const float4*>(v);
  float acc = 0.f;
  for (unsigned i = lane; i < (m >> 3); i += 32u) {
    const uint4 q = x8[i]; const float4 a = v4[2 * i], b = v4[2 * i + 1];
    acc = fmaf(bf16_lo(q.x), a.x, acc); acc = fmaf(bf16_hi(q.x), a.y, acc);
    acc = fmaf(bf16_lo(q.y), a.z, acc); acc = fmaf(bf16_hi(q.y), a.w, acc);
    acc = fmaf(bf16_lo(q.z), b.x, acc); acc = fmaf(bf16_hi(q.z), b.y, acc);
    acc = fmaf(bf16_lo(q.w), b.z, acc); acc = fmaf(bf16_hi(q.w), b.w, acc);
  }
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) acc += __shfl_xor_sync(0xffffffffu, acc, o);
  if (lane == 0u) z[row] = f2bf16(acc);
}
// One warp per sub-token (n, g): z[n, g] = dot(x[n, g * m ..], v).
extern "C" __global__ void velora_compress(const float* __restrict__ x,
                                           const float* __restrict__ v,
                                           float* __restrict__ z,
                                           unsigned rows, unsigned m) {
  const unsigned lane = threadIdx.x & 31u;
  const unsigned row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (row >= rows) return;                       // whole warp leaves together
  const float* xr = x + (size_t)row * m;
  float acc = 0.f;
  if ((m & 3u) == 0u) {                          // 16-byte aligned rows
    const float4* x4 = reinterpret_cast<const float4*>(xr);
    const float4* v4 = reinterpret_cast<const float4*>(v);
    for (unsigned i = lane; i < (m >> 2); i += 32u) {
      const float4 a = x4[i], b = v4[i];
      acc = fmaf(a.x, b.x, acc); acc = fmaf(a.y, b.y, acc);
      acc = fmaf(a.z, b.z, acc); acc = fmaf(a.w, b.w, acc);
    }
  } else {
    for (unsigned i = lane; i < m; i += 32u) acc = fmaf(xr[i], v[i], acc);
  }
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) acc += __shfl_xor_sync(0xffffffffu, acc, o);
  if (lane == 0u) z[row] = acc;
}

// dW[o, g*M+m] = scale * p[o,g] * v[m], p = dY^T Z : [O,G].  Also X^ = z (x) v.
extern "C" __global__ void velora_expand(const float* __restrict__ p,
                                         const float* __restrict__ v,
                                         float* __restrict__ dw,
                                         unsigned long long total, unsigned m, float scale) {
  const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
  for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
       i < total; i += stride) {
    const unsigned long long r = i / m;
    dw[i] = scale * p[r] * v[i - r * m];
  }
}
