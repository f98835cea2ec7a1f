// Logarithms of sums of powers, places of extremes, and running sums. `Element` is defined where this is
// included.
#include "common.cuh"
#include "columns.cuh"

typedef Number<Element> N;
typedef N::Lane Lane;
typedef N::Wide Wide;

struct Axis { Divisor size; u64 step; };
struct Axes { Axis first, second, third, fourth; };

__device__ __forceinline__ u64 along(u64& number, const Axis& axis) {
  const u64 rest = quotient(number, axis.size), at = number - rest * axis.size.divisor;
  number = rest;
  return at * axis.step;
}
__device__ __forceinline__ u64 place(u64 number, const Axes& axes) {
  u64 at = along(number, axes.first);
  at += along(number, axes.second);
  at += along(number, axes.third);
  return at + along(number, axes.fourth);
}

// Powers in single precision where the elements have no more: their arguments are at most 0, so the error of
// a sum is some units of its last place.
__device__ __forceinline__ float power(float x) { return expf(x); }
__device__ __forceinline__ double power(double x) { return exp(x); }
template <typename L> struct Real { typedef double Type; };
template <> struct Real<float> { typedef float Type; };
__device__ __forceinline__ void from_double(float& to, double x) { to = (float)x; }
__device__ __forceinline__ void from_double(double& to, double x) { to = x; }
__device__ __forceinline__ void from_double(i64& to, double x) { to = x != x ? 0 : __double2ll_rz(x); }

// log of the sum of powers over any axes: 2^log_lanes threads for a result, up to a warp.
extern "C" __global__ void log_sum_exp(const Element* __restrict__ x, Element* __restrict__ y, Axes kept, Axes reduced, u64 results,
                                    u64 count, u32 log_lanes, u32 truth) {
  typedef Real<Lane>::Type R;
  const u32 lanes = 1u << log_lanes, lane = threadIdx.x & (lanes - 1u), per_block = blockDim.x >> log_lanes;
  const u64 stride = (u64)gridDim.x * per_block;
  for (u64 first = (u64)blockIdx.x * per_block; first < results; first += stride) {
    const u64 result = first + (threadIdx.x >> log_lanes);
    const bool inside = result < results;
    const Element* from = x + (inside ? place(result, kept) : 0);
    const u64 own = inside ? count : 0;
    R greatest = Limits<R>::lowest();
    for (u64 i = lane; i < own; i += lanes)
      greatest = max_or_nan(greatest, (R)N::lane(from[place(i, reduced)]));
    for (u32 other = lanes >> 1; other > 0u; other >>= 1)
      greatest = max_or_nan(greatest, (R)__shfl_xor_sync(FULL_WARP, greatest, other));
    // Without a finite greatest element the powers are 0 or infinite as they are.
    const R shift = greatest - greatest == (R)0 ? greatest : (R)0;
    double sum = 0.0;
    for (u64 i = lane; i < own; i += lanes)
      sum += (double)power((R)N::lane(from[place(i, reduced)]) - shift);
    for (u32 other = lanes >> 1; other > 0u; other >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, other);
    if (lane == 0u && inside) {
      Lane number;
      from_double(number, (double)shift + log(sum));
      y[result] = result_of<Element>(number, truth != 0u);
    }
  }
}

// The place of the greatest or least element of [outer, size, inner] along the middle axis, with
// 2^log_lanes threads for each. As on the CPU nothing is better than a NaN in front, and no other NaN is.
extern "C" __global__ void extreme(const Element* __restrict__ x, i64* __restrict__ y, u64 results, u64 size, Divisor inner,
                                   u32 log_lanes, u32 greatest, u32 last) {
  const u32 lanes = 1u << log_lanes, lane = threadIdx.x & (lanes - 1u), per_block = blockDim.x >> log_lanes;
  const u64 stride = (u64)gridDim.x * per_block;
  for (u64 first = (u64)blockIdx.x * per_block; first < results; first += stride) {
    const u64 result = first + (threadIdx.x >> log_lanes);
    const bool inside = result < results;
    const u64 outer = quotient(inside ? result : 0, inner);
    const Element* from = x + outer * size * inner.divisor + ((inside ? result : 0) - outer * inner.divisor);
    // A thread without elements has the first one, which changes nothing.
    Lane best = N::lane(from[0]);
    u64 at = 0;
    for (u64 i = lane; i < size; i += lanes) {
      const Lane element = N::lane(from[i * inner.divisor]);
      const bool better = greatest ? element > best : element < best;
      if (better || (last && element == best)) {
        best = element;
        at = i;
      }
    }
    for (u32 other = lanes >> 1; other > 0u; other >>= 1) {
      const Lane element = __shfl_xor_sync(FULL_WARP, best, other);
      const u64 place = __shfl_xor_sync(FULL_WARP, at, other);
      const bool better = greatest ? element > best : element < best;
      if (better || (element == best && (last ? place > at : place < at))) {
        best = element;
        at = place;
      }
    }
    if (lane == 0u && inside) y[result] = (i64)at;
  }
}

// Running sums of [outer, size, inner] along the middle axis, a thread for each line.
extern "C" __global__ void running(const Element* __restrict__ x, Element* __restrict__ y, u64 lines, u64 size, Divisor inner,
                                   u32 exclusive, u32 reverse) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 line = (u64)blockIdx.x * blockDim.x + threadIdx.x; line < lines; line += stride) {
    const u64 outer = quotient(line, inner), start = outer * size * inner.divisor + (line - outer * inner.divisor);
    Wide sum = 0;
    for (u64 i = 0; i < size; i++) {
      const u64 at = start + inner.divisor * (reverse ? size - 1 - i : i);
      const Wide before = sum;
      sum = plus(sum, (Wide)N::lane(x[at]));
      y[at] = N::narrow((Lane)(exclusive ? before : sum));
    }
  }
}

// The same for lines of elements side by side, a warp for each.
extern "C" __global__ void running_rows(const Element* __restrict__ x, Element* __restrict__ y, u64 lines, u64 size,
                                        u32 exclusive, u32 reverse) {
  const u32 lane = threadIdx.x & 31u, warps = blockDim.x >> 5;
  for (u64 line = (u64)blockIdx.x * warps + (threadIdx.x >> 5); line < lines; line += (u64)gridDim.x * warps) {
    Wide before = 0;
    for (u64 first = 0; first < size; first += 32u) {
      const u64 i = first + lane, at = line * size + (reverse ? size - 1 - i : i);
      const Wide own = i < size ? (Wide)N::lane(x[at]) : (Wide)0;
      Wide sum = own;
#pragma unroll
      for (u32 back = 1u; back < 32u; back <<= 1) {
        const Wide other = __shfl_up_sync(FULL_WARP, sum, back);
        if (lane >= back) sum = plus(other, sum);
      }
      // What lies before an element is not its sum without it, which infinity is not.
      Wide earlier = __shfl_up_sync(FULL_WARP, sum, 1u);
      if (lane == 0u) earlier = 0;
      if (i < size) y[at] = N::narrow((Lane)plus(before, exclusive ? earlier : sum));
      before = plus(before, (Wide)__shfl_sync(FULL_WARP, sum, 31));
    }
  }
}
