// Rows that stay in registers from their first reading to their writing. `Element` is defined.
#pragma once
#include "common.cuh"

// A row as the threads of a team, which is a warp or a block, see it: each has the packs number `thread`,
// `thread + threads`, .. of V elements. The first HELD of them stay in registers; others are read again. A
// thread writes only packs that it has read, and reads no others: what is written may be what was read.
template <int V, int HELD> struct Row {
  const Element* from;
  u32 packs, thread, threads;
  Pack<Element, V> held[HELD];

  __device__ __forceinline__ Row(const Element* from, u32 packs, u32 thread, u32 threads)
      : from(from), packs(packs), thread(thread), threads(threads) {}

  // Calls f(number, pack) for this thread's packs, reading them.
  template <typename F> __device__ __forceinline__ void load(F f) {
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      const u32 i = thread + n * threads;
      if (i < packs) {
        held[n] = load_pack<V>(from + (u64)i * V);
        f(i, held[n]);
      } else {
        held[n] = Pack<Element, V>();
      }
    }
    for (u32 i = thread + HELD * threads; i < packs; i += threads) f(i, load_pack<V>(from + (u64)i * V));
  }

  // The same once more.
  template <typename F> __device__ __forceinline__ void again(F f) const {
#pragma unroll
    for (int n = 0; n < HELD; n++) {
      const u32 i = thread + n * threads;
      if (i < packs) f(i, held[n]);
    }
    for (u32 i = thread + HELD * threads; i < packs; i += threads) f(i, load_pack<V>(from + (u64)i * V));
  }
};

// Sums and extremes over a team; `shared` has 32 places where it is a block.
template <bool WARP, typename W> __device__ __forceinline__ W team_sum(W x, W* shared) {
  return WARP ? warp_sum(x) : block_sum(x, shared);
}
template <bool WARP, typename L> __device__ __forceinline__ L team_max(L x, L* shared, L lowest) {
  return WARP ? warp_max(x) : block_max(x, shared, lowest);
}

// Sums of V numbers pairwise.
template <int V, typename L> __device__ __forceinline__ L pack_sum(L (&x)[V]) {
#pragma unroll
  for (int half = V / 2; half > 0; half /= 2)
#pragma unroll
    for (int e = 0; e < half; e++) x[e] += x[e + half];
  return x[0];
}

__device__ __forceinline__ float power(float x) { return expf(x); }
__device__ __forceinline__ double power(double x) { return exp(x); }
__device__ __forceinline__ float lowest(float) { return -INFINITY_F; }
__device__ __forceinline__ double lowest(double) { return -INFINITY_D; }
