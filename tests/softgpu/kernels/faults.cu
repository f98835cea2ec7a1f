// Kernels with one fault each, and correct ones that look alike.
__device__ __forceinline__ float warp_sum(float a) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) a += __shfl_xor_sync(0xffffffffu, a, o);
  return a;
}
enum Fault { NONE, MISSING_SYNC, OVERWRITES_EARLY, READS_UNWRITTEN };
template <int FAULT> __device__ __forceinline__ float block_sum(float a, float* s) {
  const unsigned lane = threadIdx.x & 31u, w = threadIdx.x >> 5, nw = blockDim.x >> 5;
  a = warp_sum(a);
  if (lane == 0u) s[w] = a;
  if (FAULT != MISSING_SYNC) __syncthreads();
  if (FAULT == READS_UNWRITTEN) a = s[lane];
  else a = lane < nw ? s[lane] : 0.f;
  a = warp_sum(a);
  if (FAULT != OVERWRITES_EARLY) __syncthreads();
  return a;
}
template <int FAULT> __device__ __forceinline__ void moments(const float* x, float* out, unsigned d) {
  __shared__ float s[32];
  const float* row = x + (size_t)blockIdx.x * d;
  float a = 0.f, q = 0.f;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) a += row[i];
  const float mean = block_sum<FAULT>(a, s) / (float)d;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) {
    const float t = row[i] - mean;
    q = fmaf(t, t, q);
  }
  q = block_sum<FAULT>(q, s) / (float)d;
  if (threadIdx.x == 0u) {
    out[2 * blockIdx.x] = mean;
    out[2 * blockIdx.x + 1] = q;
  }
}
#define KERNEL(name) extern "C" __global__ void name(const float* __restrict__ x, float* __restrict__ out, unsigned d)
KERNEL(moments_clean) { moments<NONE>(x, out, d); }
KERNEL(moments_missing_sync) { moments<MISSING_SYNC>(x, out, d); }
KERNEL(moments_overwrites_early) { moments<OVERWRITES_EARLY>(x, out, d); }
KERNEL(moments_reads_unwritten) { moments<READS_UNWRITTEN>(x, out, d); }
KERNEL(off_by_one) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= d) out[i] = x[i] * 2.f;
}
// In bounds, wrong rows: only a comparison of results finds it.
KERNEL(wrong_stride) {
  const unsigned lane = threadIdx.x & 31u, row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  float a = 0.f;
  for (unsigned i = lane; i < d; i += 32u) a += x[(size_t)row * (d - 4u) + i];
  a = warp_sum(a);
  if (lane == 0u) out[row] = a;
}
KERNEL(misaligned_load) {
  const float4 q = *reinterpret_cast<const float4*>(x + threadIdx.x * d);
  out[threadIdx.x] = q.x + q.y + q.z + q.w;
}
KERNEL(misaligned_store) { *reinterpret_cast<float2*>(out + threadIdx.x * d) = make_float2(x[0], 1.f); }
KERNEL(shuffle_after_exit) {
  const unsigned i = threadIdx.x;
  if (i >= d - 5u) return;
  const float a = warp_sum(x[i]);
  if ((i & 31u) == 0u) out[i >> 5] = a;
}
// The host passes x == out.
KERNEL(reads_own_writes) {
  const unsigned i = threadIdx.x;
  out[i] = 1.f;
  __syncthreads();
  out[i + blockDim.x] = x[(i + 1u) % blockDim.x];
}
// The host passes x == out: each thread reads before it writes.
KERNEL(in_place) { out[threadIdx.x] = 2.f * x[threadIdx.x]; }
KERNEL(adds_without_atomics) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i & 31u] += x[i];
}
KERNEL(adds_atomically) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(out + (i & 31u), x[i]);
}
KERNEL(reads_what_others_add) {
  atomicAdd(out, x[threadIdx.x]);
  if (threadIdx.x == 0) out[1] = *(volatile float*)out;
}
KERNEL(stores_what_others_add) {
  if (threadIdx.x == 0) out[0] = 1.f;
  else atomicAdd(out, x[threadIdx.x]);
}
KERNEL(neighbour_without_syncwarp) {
  __shared__ float s[32];
  s[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = *(volatile float*)&s[threadIdx.x ^ 1];
}
KERNEL(neighbour_with_syncwarp) {
  __shared__ float s[32];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = *(volatile float*)&s[threadIdx.x ^ 1];
}
KERNEL(neighbour_with_partial_syncwarp) {
  __shared__ float s[32];
  const unsigned half = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp(half);
  out[threadIdx.x] = *(volatile float*)&s[threadIdx.x ^ 1];
}
KERNEL(beyond_partial_syncwarp) {
  __shared__ float s[32];
  const unsigned half = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp(half);
  out[threadIdx.x] = *(volatile float*)&s[threadIdx.x ^ 16];
}
KERNEL(same_place_in_one_warp) { out[threadIdx.x >> 1] = x[threadIdx.x]; }
KERNEL(bytes_side_by_side) {
  __shared__ unsigned char s[64];
  unsigned char* bytes = reinterpret_cast<unsigned char*>(out);
  s[threadIdx.x] = (unsigned char)x[threadIdx.x];
  bytes[threadIdx.x] = s[threadIdx.x];
}
KERNEL(shared_past_the_end) {
  __shared__ float s[32];
  __shared__ float other[32];
  other[threadIdx.x] = x[threadIdx.x];
  *(volatile float*)&s[threadIdx.x + d] = x[threadIdx.x];
  out[threadIdx.x] = *(volatile float*)&other[threadIdx.x];
}
KERNEL(dynamic_past_the_end) {
  extern __shared__ float dynamic[];
  *(volatile float*)&dynamic[threadIdx.x + d] = x[threadIdx.x];
}
KERNEL(local_past_the_end) {
  volatile float t[8];
  for (unsigned i = 0; i < 8; i++) t[i] = x[i];
  out[threadIdx.x] = t[threadIdx.x + d];
}
KERNEL(reads_unwritten_local) {
  volatile float t[8];
  for (unsigned i = 0; i < d; i++) t[i] = x[i];
  out[threadIdx.x] = t[threadIdx.x & 7];
}
KERNEL(copies) { out[threadIdx.x] = x[threadIdx.x]; }
KERNEL(register_without_value) {
  float r;
  asm volatile("{ .reg .f32 u; add.f32 %0, %1, u; }" : "=f"(r) : "f"(x[threadIdx.x]));
  out[threadIdx.x] = r;
}
KERNEL(address_without_value) {
  float r;
  asm volatile("{ .reg .b64 a; .reg .b64 b; and.b64 b, a, 0; add.u64 b, b, %1; ld.global.f32 %0, [b]; }"
               : "=f"(r)
               : "l"(x));
  out[threadIdx.x] = r;
}
KERNEL(branch_without_value) {
  asm volatile("{ .reg .pred p; @p bra skip; st.global.f32 [%0], 0f3F800000; skip: }" ::"l"(out + threadIdx.x));
}
// The value that was never written is chosen by no lane.
KERNEL(register_not_chosen) {
  float r;
  asm volatile("{ .reg .f32 u; .reg .pred p; setp.ne.f32 p, %1, %1; selp.f32 %0, u, %1, p; }"
               : "=f"(r)
               : "f"(x[threadIdx.x]));
  out[threadIdx.x] = r;
}
KERNEL(half_a_warp_votes) {
  if (threadIdx.x < 16) out[threadIdx.x] = (float)__ballot_sync(0xffffffffu, x[threadIdx.x] > 0.f);
}
KERNEL(half_a_warp_votes_by_its_mask) {
  if (threadIdx.x < 16) out[threadIdx.x] = (float)__ballot_sync(0xffffu, x[threadIdx.x] > 0.f);
}
KERNEL(shuffle_from_outside) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffu, x[threadIdx.x], 20);
}
KERNEL(not_in_own_mask) { out[threadIdx.x] = __shfl_sync(0xfffffffeu, x[threadIdx.x], 1); }
KERNEL(exits_before_barrier) {
  __shared__ float s[64];
  if (threadIdx.x >= d) return;
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}
KERNEL(different_barriers) {
  if (threadIdx.x < d) {
    out[threadIdx.x] = x[0];
    asm volatile("bar.sync 0;" ::: "memory");
    out[threadIdx.x] += 1.f;
  } else {
    out[threadIdx.x] = x[1] * 2.f;
    asm volatile("bar.sync 0;" ::: "memory");
    out[threadIdx.x] -= 1.f;
  }
}
KERNEL(waits_forever) {
  while (*(volatile const float*)x < 2.f) {
  }
  out[0] = 1.f;
}
__constant__ float constants[32];
KERNEL(writes_constants) {
  asm volatile("st.f32 [%0], %1;" ::"l"(constants + threadIdx.x), "f"(x[threadIdx.x]) : "memory");
  out[threadIdx.x] = 1.f;
}
KERNEL(traps) {
  if (x[0] > d) __trap();
  out[threadIdx.x] = 1.f;
}
extern "C" __global__ void __launch_bounds__(64) bounded(const float* x, float* out, unsigned d) {
  out[threadIdx.x] = x[threadIdx.x];
}
