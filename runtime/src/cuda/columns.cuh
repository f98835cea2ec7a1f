// Reductions of the columns of a matrix, in parts, and what is done to each element of one.
#pragma once
#include "common.cuh"

// A reduction step by step: its value for nothing, with one more element, and of two parts.
template <typename L> struct Limits;
template <> struct Limits<float> {
  static __device__ __forceinline__ float lowest() { return -INFINITY_F; }
  static __device__ __forceinline__ float highest() { return INFINITY_F; }
};
template <> struct Limits<double> {
  static __device__ __forceinline__ double lowest() { return -INFINITY_D; }
  static __device__ __forceinline__ double highest() { return INFINITY_D; }
};
template <> struct Limits<i64> {
  static __device__ __forceinline__ i64 lowest() { return (i64)(1ull << 63); }
  static __device__ __forceinline__ i64 highest() { return (i64)~(1ull << 63); }
};
// Integers wrap around.
__device__ __forceinline__ float plus(float a, float b) { return a + b; }
__device__ __forceinline__ double plus(double a, double b) { return a + b; }
__device__ __forceinline__ i64 plus(i64 a, i64 b) { return (i64)((u64)a + (u64)b); }
__device__ __forceinline__ float times(float a, float b) { return a * b; }
__device__ __forceinline__ double times(double a, double b) { return a * b; }
__device__ __forceinline__ i64 times(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }
__device__ __forceinline__ float size_of(float a) { return fabsf(a); }
__device__ __forceinline__ double size_of(double a) { return fabs(a); }
__device__ __forceinline__ i64 size_of(i64 a) { return a < 0 ? (i64)(0ull - (u64)a) : a; }

struct Sum {
  template <typename L> static __device__ __forceinline__ L start() { return (L)0; }
  template <typename L> static __device__ __forceinline__ L step(L total, L x) { return plus(total, x); }
  template <typename L> static __device__ __forceinline__ L join(L a, L b) { return plus(a, b); }
};
struct SumAbs : Sum {
  template <typename L> static __device__ __forceinline__ L step(L total, L x) { return plus(total, size_of(x)); }
};
struct SumSquare : Sum {
  template <typename L> static __device__ __forceinline__ L step(L total, L x) { return plus(total, times(x, x)); }
};
struct Product {
  template <typename L> static __device__ __forceinline__ L start() { return (L)1; }
  template <typename L> static __device__ __forceinline__ L step(L total, L x) { return times(total, x); }
  template <typename L> static __device__ __forceinline__ L join(L a, L b) { return times(a, b); }
};
// A NaN is the greatest, and the least.
struct Max {
  template <typename L> static __device__ __forceinline__ L start() { return Limits<L>::lowest(); }
  template <typename L> static __device__ __forceinline__ L step(L a, L b) { return max_or_nan(a, b); }
  template <typename L> static __device__ __forceinline__ L join(L a, L b) { return max_or_nan(a, b); }
};
struct Min {
  template <typename L> static __device__ __forceinline__ L start() { return Limits<L>::highest(); }
  template <typename L> static __device__ __forceinline__ L step(L a, L b) { return (a < b || a != a) ? a : b; }
  template <typename L> static __device__ __forceinline__ L join(L a, L b) { return (a < b || a != a) ? a : b; }
};

// A result: of integers the ends of the range for the extremes of nothing, else wrapped around; a truth value is
// 0 or 1.
template <typename T> struct Ends { static __device__ __forceinline__ T narrow(typename Number<T>::Lane x) { return Number<T>::narrow(x); } };
#define VELORA_ENDS(T, LOW, HIGH)                       \
  template <> struct Ends<T> {                          \
    static __device__ __forceinline__ T narrow(i64 x) { \
      if (x == Limits<i64>::lowest()) return (T)LOW;    \
      if (x == Limits<i64>::highest()) return (T)HIGH;  \
      return (T)x;                                      \
    }                                                   \
  };
VELORA_ENDS(i8, -128, 127)
VELORA_ENDS(u8, 0, 255)
VELORA_ENDS(i32, (-2147483647 - 1), 2147483647)
template <typename T> __device__ __forceinline__ T result_of(typename Number<T>::Lane x, bool truth) {
  const T result = Ends<T>::narrow(x), one = Number<T>::narrow(1);
  return truth && Number<T>::lane(result) > Number<T>::lane(one) ? one : result;
}

// Elements after which a lane's total is joined to the wide one.
#define DEPTH 32

// How a matrix [rows, width] is cut (`Columns` of the launcher): blocks of 256 threads, 2^across of them side
// by side, each for V columns, and the others in further rows; tiles of columns, and parts of rows.
struct Columns {
  u64 rows, width, rows_of_part;
  u32 tiles, across;
};

// Reduces the columns of part `part` of the rows in tile `tile`. `load(row, column, x)` gives V elements;
// the threads with the return value true have the totals of V columns from `column` on. `shared` has 256 * V
// places.
template <typename S, int V, typename L, typename W, typename F>
__device__ __forceinline__ bool fold_columns(const Columns& cut, u64 part, u32 tile, W* shared, W (&totals)[V],
                                             u64& column, F load) {
  const u32 side = 1u << cut.across, down = blockDim.x >> cut.across;
  const u32 tx = threadIdx.x & (side - 1u), ty = threadIdx.x >> cut.across;
  column = ((u64)tile * side + tx) * V;
  const bool inside = column < cut.width;
  const u64 begin = part * cut.rows_of_part;
  const u64 end = begin + cut.rows_of_part < cut.rows ? begin + cut.rows_of_part : cut.rows;
#pragma unroll
  for (int e = 0; e < V; e++) totals[e] = S::template start<W>();
  if (inside) {
    u64 row = begin + ty;
    while (row < end) {
      L sums[V];
#pragma unroll
      for (int e = 0; e < V; e++) sums[e] = S::template start<L>();
#pragma unroll(V > 4 ? 2 : 4)
      for (u32 n = 0; n < DEPTH && row < end; n++, row += down) {
        L x[V];
        load(row, column, x);
#pragma unroll
        for (int e = 0; e < V; e++) sums[e] = S::step(sums[e], x[e]);
      }
#pragma unroll
      for (int e = 0; e < V; e++) totals[e] = S::join(totals[e], (W)sums[e]);
    }
  }
#pragma unroll
  for (int e = 0; e < V; e++) shared[e * blockDim.x + threadIdx.x] = totals[e];
  __syncthreads();
  for (u32 half = down >> 1; half > 0u; half >>= 1) {
    if (ty < half) {
#pragma unroll
      for (int e = 0; e < V; e++) {
        W* place = shared + e * blockDim.x + threadIdx.x;
        *place = S::join(*place, place[half << cut.across]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int e = 0; e < V; e++) totals[e] = shared[e * blockDim.x + threadIdx.x];
  return inside && ty == 0u;
}

// Joins the parts [count, width] of 32 columns, in a block of 256 threads; the first warp gets the totals.
template <typename S, typename W>
__device__ __forceinline__ W join_parts(const W* parts, u64 count, u64 width, u64 column, W* shared) {
  const u32 lane = threadIdx.x & 31u, line = threadIdx.x >> 5;
  W total = S::template start<W>();
  if (column < width)
    for (u64 part = line; part < count; part += 8u) total = S::join(total, parts[part * width + column]);
  shared[line * 32u + lane] = total;
  __syncthreads();
  if (line == 0u)
    for (u32 other = 1u; other < 8u; other++) total = S::join(total, shared[other * 32u + lane]);
  return total;
}
