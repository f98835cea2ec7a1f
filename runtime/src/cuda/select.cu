// One-hot rows, and the greatest or least elements of lines.
#include "common.cuh"

// Element types, as ONNX counts them.
#define TYPE_FLOAT 1u
#define TYPE_U8 2u
#define TYPE_I8 3u
#define TYPE_U16 4u
#define TYPE_I16 5u
#define TYPE_I32 6u
#define TYPE_HALF 10u
#define TYPE_DOUBLE 11u
#define TYPE_U32 12u
#define TYPE_U64 13u
#define TYPE_BRAIN 16u

#define MOST_I64 0x7fffffffffffffffll

// Towards zero, at the ends of the range where it is beyond, and 0 for NaN.
__device__ __forceinline__ i64 whole(float x) { return x != x ? 0 : __float2ll_rz(x); }
__device__ __forceinline__ i64 whole(double x) { return x != x ? 0 : __double2ll_rz(x); }

// An index of any number type.
__device__ __forceinline__ i64 any_index(const void* indices, u32 type, u32 at) {
  switch (type) {
    case TYPE_FLOAT: return whole(((const float*)indices)[at]);
    case TYPE_DOUBLE: return whole(((const double*)indices)[at]);
    case TYPE_HALF: return whole(to_float(((const f16*)indices)[at]));
    case TYPE_BRAIN: return whole(to_float(((const bf16*)indices)[at]));
    case TYPE_U8: return ((const u8*)indices)[at];
    case TYPE_I8: return ((const i8*)indices)[at];
    case TYPE_U16: return ((const u16*)indices)[at];
    case TYPE_I16: return ((const i16*)indices)[at];
    case TYPE_I32: return ((const i32*)indices)[at];
    case TYPE_U32: return ((const u32*)indices)[at];
    case TYPE_U64: {
      const u64 index = ((const u64*)indices)[at];
      return index > (u64)MOST_I64 ? MOST_I64 : (i64)index;
    }
    default: return ((const i64*)indices)[at];
  }
}

// The output is [outer, depth, inner]; what is outside leaves its row without the other value.
template <typename T>
__device__ __forceinline__ void one_hot(const void* indices, u32 type, const T* values, T* output, const Divider& depth,
                                        const Divider& inner, u32 count) {
  const T off = values[0], on = values[1];
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 line = divide(i, inner), within = i - line * inner.size;
    const u32 outer = divide(line, depth), place = line - outer * depth.size;
    i64 index = any_index(indices, type, outer * inner.size + within);
    if (index < 0) index = index >= -(i64)depth.size ? index + (i64)depth.size : -1;
    output[i] = index == (i64)place ? on : off;
  }
}

#define VELORA_ONE_HOT(WIDTH, T)                                                                             \
  extern "C" __global__ void one_hot_##WIDTH(const void* indices, u32 type, const T* values, T* output,        \
                                             Divider depth, Divider inner, u32 count) {                      \
    one_hot<T>(indices, type, values, output, depth, inner, count);                                          \
  }
VELORA_WIDTHS(VELORA_ONE_HOT)

// Numbers whose order is that of the elements: NaN is the greatest, and the zeros are equal.
__device__ __forceinline__ u64 rank_of(double x) {
  if (x != x) return ~0ull;
  const u64 bits = (u64)__double_as_longlong(x == 0.0 ? 0.0 : x);
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}
__device__ __forceinline__ u64 rank_of(float x) { return rank_of((double)x); }
__device__ __forceinline__ u64 rank_of(f16 x) { return rank_of((double)to_float(x)); }
__device__ __forceinline__ u64 rank_of(bf16 x) { return rank_of((double)to_float(x)); }
__device__ __forceinline__ u64 rank_of(u64 x) { return x; }
#define VELORA_RANK(T) \
  __device__ __forceinline__ u64 rank_of(T x) { return (u64)(i64)x ^ 1ull << 63; }
VELORA_RANK(i8) VELORA_RANK(i16) VELORA_RANK(i32) VELORA_RANK(i64) VELORA_RANK(u8) VELORA_RANK(u16) VELORA_RANK(u32)

// An element with its place; greater ones come first, and of equal ones that with the lower place.
struct Entry { u64 rank; u32 place; };
#define NO_PLACE 0xffffffffu

__device__ __forceinline__ bool comes_before(const Entry& a, const Entry& b) {
  return a.place != NO_PLACE && (b.place == NO_PLACE || a.rank > b.rank || (a.rank == b.rank && a.place < b.place));
}

__device__ __forceinline__ Entry first_of_warp(Entry entry) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) {
    Entry other;
    other.rank = __shfl_xor_sync(FULL_WARP, entry.rank, lanes);
    other.place = __shfl_xor_sync(FULL_WARP, entry.place, lanes);
    if (comes_before(other, entry)) entry = other;
  }
  return entry;
}

// A block of whole warps per line. Every round finds the first entry behind that of the round before, so
// that it takes k passes over a line, which stays in the caches, and no scratch.
template <typename T>
__device__ __forceinline__ void top(const T* data, T* values, i64* places, u64 lines, u32 size, u64 inner, u32 k,
                                    u32 largest) {
  __shared__ Entry found[32];
  const u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  for (u64 line = blockIdx.x; line < lines; line += gridDim.x) {
    const u64 outer = line / inner, within = line - outer * inner;
    const T* from = data + outer * size * inner + within;
    const u64 to = outer * k * inner + within;
    Entry last = {0, NO_PLACE};
    for (u32 round = 0; round < k; round++) {
      Entry best = {0, NO_PLACE};
      for (u32 place = threadIdx.x; place < size; place += blockDim.x) {
        const u64 rank = rank_of(from[place * inner]);
        const Entry entry = {largest ? rank : ~rank, place};
        const bool is_left = last.place == NO_PLACE || comes_before(last, entry);
        if (is_left && comes_before(entry, best)) best = entry;
      }
      best = first_of_warp(best);
      if (warps > 1u) {
        if (lane == 0u) found[warp] = best;
        __syncthreads();
        const Entry none = {0, NO_PLACE};
        best = first_of_warp(lane < warps ? found[lane] : none);
        __syncthreads();
      }
      if (threadIdx.x == 0u) {
        if (values) values[to + round * inner] = from[best.place * inner];
        if (places) places[to + round * inner] = (i64)best.place;
      }
      last = best;
    }
  }
}

#define VELORA_TOP(SUFFIX, T)                                                                                   \
  extern "C" __global__ void top_##SUFFIX(const T* data, T* values, i64* places, u64 lines, u32 size, u64 inner,  \
                                          u32 k, u32 largest) {                                                 \
    top<T>(data, values, places, lines, size, inner, k, largest);                                               \
  }
VELORA_FLOATS(VELORA_TOP)
VELORA_TOP(i8, i8) VELORA_TOP(i16, i16) VELORA_TOP(i32, i32) VELORA_TOP(i64, i64)
VELORA_TOP(u8, u8) VELORA_TOP(u16, u16) VELORA_TOP(u32, u32) VELORA_TOP(u64, u64)
