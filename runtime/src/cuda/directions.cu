// Moving directions, and how projections are stored. `Element` is defined.
#include "common.cuh"

typedef Number<Element> N;
typedef N::Lane Lane;

#define LEAST_NORM 1.17549435082228750797e-38

// decay v + (1 - decay) mean of vectors, normalised, or the mean where that cancels; a block for each.
extern "C" __global__ void blend(const Element* __restrict__ v, const Element* __restrict__ mean,
                                 Element* __restrict__ next, u64 vectors, u64 size, double decay) {
  __shared__ double shared[32];
  const double share = 1.0 - decay;
  for (u64 vector = blockIdx.x; vector < vectors; vector += gridDim.x) {
    const u64 start = vector * size;
    double square = 0.0;
    for (u64 m = start + threadIdx.x; m < start + size; m += blockDim.x) {
      const double entry = decay * (double)N::lane(v[m]) + share * (double)N::lane(mean[m]);
      square += entry * entry;
    }
    const double norm = sqrt(block_sum(square, shared));
    for (u64 m = start + threadIdx.x; m < start + size; m += blockDim.x) {
      const double other = (double)N::lane(mean[m]);
      const double entry = decay * (double)N::lane(v[m]) + share * other;
      next[m] = N::narrow((Lane)(norm < LEAST_NORM ? other : entry / norm));
    }
  }
}

// Rows as 8-bit integers, a warp for each; the largest magnitude becomes 127. A NaN is no magnitude.
extern "C" __global__ void quantize(const Element* __restrict__ z, i8* __restrict__ q, Element* __restrict__ scales,
                                    u64 rows, u64 width) {
  const u32 lane = threadIdx.x & 31u, warps = blockDim.x >> 5;
  for (u64 row = (u64)blockIdx.x * warps + (threadIdx.x >> 5); row < rows; row += (u64)gridDim.x * warps) {
    const Element* from = z + row * width;
    Lane largest = 0;
    for (u64 i = lane; i < width; i += 32u) {
      const Lane x = N::lane(from[i]), size = x < (Lane)0 ? -x : x;
      if (size > largest) largest = size;
    }
    largest = warp_max(largest);
    double step = (double)largest / 127.0;
    // A row of zeros has no scale, and any will do.
    if (!(step > LEAST_NORM)) step = LEAST_NORM;
    const Element scale = N::narrow((Lane)step);
    if (lane == 0u) scales[row] = scale;
    // As it is stored.
    step = (double)N::lane(scale);
    for (u64 i = lane; i < width; i += 32u) {
      double part = rint((double)N::lane(from[i]) / step);
      // Rounding the scale may make a part a little more than 127.
      part = part > 127.0 ? 127.0 : part < -128.0 ? -128.0 : part != part ? 0.0 : part;
      q[row * width + i] = (i8)(int)part;
    }
  }
}

// Back: V numbers of a row at once.
template <int V>
__device__ __forceinline__ void dequantize(const i8* __restrict__ q, const Element* __restrict__ scales,
                                           Element* __restrict__ z, u64 packs, const Divisor& of_row) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
    const Lane scale = N::lane(scales[quotient(i, of_row)]);
    const Pack<i8, V> from = load_pack<V>(q + i * V);
    Pack<Element, V> to;
#pragma unroll
    for (int e = 0; e < V; e++) to.at[e] = N::narrow((Lane)from.at[e] * scale);
    store_pack(z + i * V, to);
  }
}
#define DIRECTIONS_BACK(V)                                                                                        \
  extern "C" __global__ void dequantize_##V(const i8* q, const Element* scales, Element* z, u64 packs, Divisor of_row) { \
    dequantize<V>(q, scales, z, packs, of_row);                                                                   \
  }
#if ELEMENT_BYTES == 2
DIRECTIONS_BACK(8)
#endif
#if ELEMENT_BYTES <= 4
DIRECTIONS_BACK(4)
#endif
DIRECTIONS_BACK(2)
DIRECTIONS_BACK(1)
