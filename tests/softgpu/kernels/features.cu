// What kernels use besides arithmetic: spaces of memory, calls, atomics, warp operations, 16-bit floats.
typedef unsigned u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef unsigned char u8;

__constant__ float table[4] = {1.f, 2.f, 3.f, 4.f};
__device__ int numbers[3] = {7, 8, 9};
__device__ float zeroed[4];
__device__ const float* pointer = table;
struct Large {
  float a[20];
  int n;
  const float* p;
  char c;
};

extern "C" __global__ void by_value(Large b, float* out) {
  out[threadIdx.x] = b.a[threadIdx.x % 20] + b.n + b.p[0] + b.c;
}
extern "C" __global__ void variables(float* out, int i) {
  out[threadIdx.x] = table[threadIdx.x & 3] + numbers[i] + zeroed[i] + pointer[1];
  if (threadIdx.x == 0) zeroed[3] = 5.f;
}
extern "C" __global__ void read_variable(float* out) { out[threadIdx.x] = zeroed[3]; }
extern "C" __global__ void local_array(const int* index, float* out) {
  float t[16];
  for (int i = 0; i < 16; i++) t[i] = i * 2.f + threadIdx.x;
  for (int i = 0; i < 8; i++) t[index[i] & 15] += 1.f;
  out[threadIdx.x] = t[index[threadIdx.x] & 15];
}
extern "C" __global__ void dynamic(const float* x, float* out) {
  extern __shared__ float s[];
  __shared__ double q[32];
  s[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x < 32) q[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x] + (float)q[threadIdx.x & 31];
}
template <int N> __device__ __noinline__ float helper(float x, float* sum) {
  for (int i = 0; i < N; i++) {
    x = x * x + 1.f;
    *sum += x;
  }
  return x;
}
extern "C" __global__ void calls(const float* x, float* out) {
  float sum = 0.f;
  float r = helper<2>(x[threadIdx.x], &sum);
  if (threadIdx.x & 1) r += helper<3>(r, &sum);
  out[threadIdx.x] = r + sum;
}
__device__ __noinline__ double2 pair(double2 q, int k) { return make_double2(q.x + k, q.y * k); }
extern "C" __global__ void struct_calls(const double2* x, double2* out) {
  out[threadIdx.x] = pair(x[threadIdx.x], (int)threadIdx.x);
}
extern "C" __global__ void atomics(int* i, u32* u, u64* l, float* f, double* d, u32* old) {
  const u32 t = threadIdx.x;
  atomicAdd(i, 1);
  atomicSub(i + 1, 2);
  atomicMax(i + 2, (int)t);
  atomicMin(i + 3, -(int)t);
  atomicCAS(i + 4, 0, 3);
  atomicAnd(u, ~(1u << (t & 31)));
  atomicOr(u + 1, 1u << (t & 31));
  atomicXor(u + 2, t);
  old[t] = atomicInc(u + 3, 100);
  atomicDec(u + 4, 100);
  atomicMax(u + 5, t);
  atomicAdd(l, 1ull);
  atomicMax(l + 1, (u64)t);
  atomicOr(l + 2, 1ull << (t & 63));
  atomicAdd(f, 1.f);
  atomicAdd(d, 0.5);
  __shared__ int si;
  __shared__ float sf;
  if (t == 0) {
    si = 0;
    sf = 0.f;
  }
  __syncthreads();
  atomicAdd(&si, 1);
  atomicAdd(&sf, 1.f);
  __syncthreads();
  if (t == 0) atomicExch(i + 5, si + (int)sf);
}
extern "C" __global__ void votes(const int* x, u32* out) {
  const int v = x[threadIdx.x];
  const u32 n = blockDim.x, t = threadIdx.x;
  out[t] = __ballot_sync(~0u, v > 3);
  out[t + n] = __any_sync(~0u, v > 6) + 2 * __all_sync(~0u, v > -1);
  out[t + 2 * n] = __shfl_sync(~0u, v, 3);
  out[t + 3 * n] = __shfl_up_sync(~0u, v, 1);
  out[t + 4 * n] = __shfl_down_sync(~0u, v, 2, 16);
  out[t + 5 * n] = __shfl_xor_sync(~0u, v, 5);
  out[t + 6 * n] = __syncthreads_count(v > 3) + 1000 * __syncthreads_or(v > 6) + 2000 * __syncthreads_and(v > -1);
  out[t + 7 * n] = __match_any_sync(~0u, v);
  out[t + 8 * n] = __reduce_add_sync(~0u, (u32)v) + 1000 * __reduce_max_sync(~0u, v);
  u32 active = 0;
  if (v > 3) active = __activemask();
  out[t + 9 * n] = active;
}
extern "C" __global__ void special(u32* out) {
  u32 eq, lt, le, gt, ge, lane, warp;
  asm("mov.u32 %0, %%lanemask_eq;" : "=r"(eq));
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(lt));
  asm("mov.u32 %0, %%lanemask_le;" : "=r"(le));
  asm("mov.u32 %0, %%lanemask_gt;" : "=r"(gt));
  asm("mov.u32 %0, %%lanemask_ge;" : "=r"(ge));
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  asm("mov.u32 %0, %%warpid;" : "=r"(warp));
  u32* o = out + 8 * threadIdx.x;
  o[0] = eq, o[1] = lt, o[2] = le, o[3] = gt, o[4] = ge, o[5] = lane, o[6] = warp, o[7] = blockDim.x;
}
extern "C" __global__ void halves(const float* x, u16* h, u16* b, float* f, u32* pairs) {
  const float v = x[threadIdx.x];
  u16 half, bf, product, fused;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(v));
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bf) : "f"(v));
  asm("mul.f16 %0, %1, %1;" : "=h"(product) : "h"(half));
  asm("fma.rn.bf16 %0, %1, %1, %1;" : "=h"(fused) : "h"(bf));
  float back, squared;
  asm("cvt.f32.f16 %0, %1;" : "=f"(back) : "h"(half));
  asm("cvt.f32.f16 %0, %1;" : "=f"(squared) : "h"(product));
  h[threadIdx.x] = half;
  b[2 * threadIdx.x] = bf;
  b[2 * threadIdx.x + 1] = fused;
  f[2 * threadIdx.x] = back;
  f[2 * threadIdx.x + 1] = squared;
  u32 p;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p) : "f"(v), "f"(1.f));
  pairs[threadIdx.x] = p;
}
extern "C" __global__ void vectors(const uchar4* a, const short2* b, const double2* c, const ushort4* d,
                                   const float4* e, uchar4* p, short2* q, double2* r, ushort4* s, float4* t) {
  const int i = threadIdx.x;
  uchar4 v = a[i];
  v.x++;
  p[i] = v;
  short2 w = b[i];
  w.y--;
  q[i] = w;
  double2 x = c[i];
  x.x += 1;
  r[i] = x;
  ushort4 y = d[i];
  y.w += 2;
  s[i] = y;
  float4 z = e[i];
  z.z = -z.z;
  t[i] = z;
}
extern "C" __global__ void cached(const float* x, float* out, volatile float* v) {
  out[0] = __ldg(x) + __ldcg(x + 1) + __ldcs(x + 2) + __ldca(x + 3) + __ldcv(x + 4) + __ldlu(x + 5) + v[0];
  __stwb(out + 1, 1.f);
  __stcg(out + 2, 1.f);
  __stcs(out + 3, 2.f);
  __stwt(out + 4, 3.f);
  v[1] = 3.f;
  __threadfence();
}
extern "C" __global__ void generic(float* out, int which) {
  __shared__ float s[32];
  float local[2];
  local[0] = 1.f;
  local[1] = 2.f;
  s[threadIdx.x] = 3.f;
  float* choice = which == 0 ? out + threadIdx.x : which == 1 ? s + threadIdx.x : local + (threadIdx.x & 1);
  asm volatile("st.f32 [%0], %1;" ::"l"(choice), "f"(7.f + threadIdx.x) : "memory");
  out[threadIdx.x + 32] = s[threadIdx.x] + local[0] + local[1];
}
// Lanes leave the loop one after another, and meet again behind it.
extern "C" __global__ void diverging(const int* x, int* out) {
  int n = x[threadIdx.x], steps = 0;
  while (n != 1) {
    n = n & 1 ? 3 * n + 1 : n >> 1;
    steps++;
  }
  out[threadIdx.x] = steps + (int)__popc(__ballot_sync(~0u, steps > 10));
}
// Indexed branches occur in hand-written PTX only.
extern "C" __global__ void table_branch(const u32* x, u32* out) {
  u32 r;
  asm volatile("{ .reg .u32 i; min.u32 i, %1, 2;\n"
               "ts: .branchtargets la, lb, lc;\n"
               "brx.idx i, ts;\n"
               "la: mov.u32 %0, 10; bra done;\n"
               "lb: mov.u32 %0, 20; bra done;\n"
               "lc: mov.u32 %0, 30;\n"
               "done: }"
               : "=r"(r)
               : "r"(x[threadIdx.x]));
  out[threadIdx.x] = r;
}
// Neighbours exchange values, more often than the detector of races counts before it starts anew.
extern "C" __global__ void many_barriers(u32* out, u32 times, u32 forgetful) {
  __shared__ u32 s[64];
  u32 v = threadIdx.x;
  for (u32 i = 0; i < times; i++) {
    s[threadIdx.x] = v;
    __syncthreads();
    v = s[(threadIdx.x + 1) & 63];
    if (i != forgetful) __syncthreads();
  }
  out[threadIdx.x] = v;
}
// The parameter is read at an address that is computed.
extern "C" __global__ void indexed_parameter(Large b, const int* index, float* out) {
  out[threadIdx.x] = b.a[index[threadIdx.x]];
}
