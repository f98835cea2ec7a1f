// Numbers from integers and scales. `Integer` is how integers lie in memory, BITS bits each; of 4 bits there are
// two in a byte, and SIGN is 8 where they have a sign. `Scale` is the type of the scales, `Element` of the result.
#include "common.cuh"

typedef Number<Element> N;

// Elements of a thread; what they are made of has 4 bytes or more.
#define EIGHT 8

#if BITS == 4
// The bit of the sign is flipped, and then counts as often as it counted too much.
__device__ __forceinline__ float nibble(u32 byte) { return (float)((i32)((byte & 15u) ^ SIGN) - SIGN); }
__device__ __forceinline__ float integer(const Integer* all, u64 at) { return nibble((u32)all[at >> 1] >> (4u * (u32)(at & 1))); }
__device__ __forceinline__ void integers(const Integer* all, u64 at, float (&x)[EIGHT]) {
  const u32 whole = *reinterpret_cast<const u32*>(all + (at >> 1));
#pragma unroll
  for (int e = 0; e < EIGHT; e++) x[e] = nibble(whole >> (4 * e));
}
#else
__device__ __forceinline__ float integer(const Integer* all, u64 at) { return (float)all[at]; }
__device__ __forceinline__ void integers(const Integer* all, u64 at, float (&x)[EIGHT]) {
#if BITS == 32
#define AT_ONCE 4
#else
#define AT_ONCE 8
#endif
#pragma unroll
  for (int first = 0; first < EIGHT; first += AT_ONCE) {
    const Pack<Integer, AT_ONCE> pack = load_pack<AT_ONCE>(all + at + first);
#pragma unroll
    for (int e = 0; e < AT_ONCE; e++) x[first + e] = (float)pack.at[e];
  }
}
#endif

// Which scale an element has, of [outer, size, inner]: that of its position on the axis (block 0), or of its
// block of positions, with its position on the other axes.
struct Pattern {
  Divisor inner, size, block;
  u64 blocks, by_block;
};

__device__ __forceinline__ u64 scale_of(const Pattern& pattern, u64 at) {
  const u64 row = quotient(at, pattern.inner), outer = quotient(row, pattern.size);
  const u64 position = row - outer * pattern.size.divisor;
  if (!pattern.by_block) return position;
  return (outer * pattern.blocks + quotient(position, pattern.block)) * pattern.inner.divisor + (at - row * pattern.inner.divisor);
}

// `zeros` may be absent. Eight elements share a scale where `shared` is set.
extern "C" __global__ void dequantize(const Integer* __restrict__ x, const Scale* __restrict__ scales,
                                      const Integer* __restrict__ zeros, Element* __restrict__ y, u64 elements, Pattern pattern,
                                      u32 shared) {
  const u64 stride = (u64)gridDim.x * blockDim.x, start = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  const u64 eights = elements / EIGHT;
  for (u64 i = start; i < eights; i += stride) {
    const u64 at = i * EIGHT;
    float values[EIGHT];
    integers(x, at, values);
    u64 number = scale_of(pattern, at);
    float scale = Number<Scale>::lane(scales[number]), zero = zeros ? integer(zeros, number) : 0.f;
    Element results[EIGHT];
#pragma unroll
    for (int e = 0; e < EIGHT; e++) {
      if (e > 0 && !shared) {
        number = scale_of(pattern, at + e);
        scale = Number<Scale>::lane(scales[number]);
        zero = zeros ? integer(zeros, number) : 0.f;
      }
      results[e] = N::narrow((values[e] - zero) * scale);
    }
#pragma unroll
    for (int first = 0; first < EIGHT; first += 4) {
      Pack<Element, 4> pack;
#pragma unroll
      for (int e = 0; e < 4; e++) pack.at[e] = results[first + e];
      store_pack(y + at + first, pack);
    }
  }
  for (u64 at = eights * EIGHT + start; at < elements; at += stride) {
    const u64 number = scale_of(pattern, at);
    const float zero = zeros ? integer(zeros, number) : 0.f;
    y[at] = N::narrow((integer(x, at) - zero) * Number<Scale>::lane(scales[number]));
  }
}
