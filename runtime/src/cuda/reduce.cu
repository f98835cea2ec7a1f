// Reductions over axes. `Element` is a type and `Step` a reduction, where this is included.
#include "common.cuh"
#include "columns.cuh"

typedef Number<Element> N;
typedef N::Lane Lane;
typedef N::Wide Wide;

// What is left to do to a total, by number: `Kind` of the launcher.
#define MEAN 1u
#define ROOT 2u
#define LOGARITHM 3u
// The result is a truth value.
#define TRUTH 8u

__device__ __forceinline__ double over(double total, u64 count) { return total / (double)count; }
__device__ __forceinline__ i64 over(i64 total, u64 count) { return count == 0 ? 0 : total / (i64)count; }
__device__ __forceinline__ void from_double(double& to, double x) { to = x; }
// Towards zero, at the ends of the range where it is beyond, and 0 for NaN.
__device__ __forceinline__ void from_double(i64& to, double x) { to = x != x ? 0 : __double2ll_rz(x); }

__device__ __forceinline__ Element finish(Wide total, u64 count, u32 kind) {
  switch (kind & 7u) {
    case MEAN: total = over(total, count); break;
    case ROOT: from_double(total, sqrt((double)total)); break;
    case LOGARITHM: from_double(total, log((double)total)); break;
    default: break;
  }
  return result_of<Element>((Lane)total, kind & TRUTH);
}

// A total goes to the results, or to the parts where there are several of a row.
__device__ __forceinline__ void put(Element* y, Wide* parts, u64 at, Wide total, u64 count, u32 kind) {
  if (parts) parts[at] = total;
  else y[at] = finish(total, count, kind);
}

// A thread's share of elements side by side: packs `first`, `first + step`, .. before `end`.
template <int V> __device__ __forceinline__ Wide fold_packs(const Element* __restrict__ x, u64 first, u64 end, u32 step) {
  Wide total = Step::template start<Wide>();
  while (first < end) {
    Lane sums[V];
#pragma unroll
    for (int e = 0; e < V; e++) sums[e] = Step::template start<Lane>();
#pragma unroll 4
    for (u32 n = 0; n < DEPTH && first < end; n++, first += step) {
      const Pack<Element, V> pack = load_pack<V>(x + first * V);
#pragma unroll
      for (int e = 0; e < V; e++) sums[e] = Step::step(sums[e], N::lane(pack.at[e]));
    }
#pragma unroll
    for (int half = V / 2; half > 0; half /= 2)
#pragma unroll
      for (int e = 0; e < half; e++) sums[e] = Step::join(sums[e], sums[e + half]);
    total = Step::join(total, (Wide)sums[0]);
  }
  return total;
}

__device__ __forceinline__ Wide fold_lanes(Wide total, u32 lanes) {
  for (u32 other = lanes >> 1; other > 0u; other >>= 1)
    total = Step::join(total, (Wide)__shfl_xor_sync(FULL_WARP, total, other));
  return total;
}

__device__ __forceinline__ Wide fold_block(Wide total, Wide* shared) {
  const u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  total = fold_lanes(total, 32u);
  if (lane == 0u) shared[warp] = total;
  __syncthreads();
  total = lane < warps ? shared[lane] : Step::template start<Wide>();
  total = fold_lanes(total, 32u);
  __syncthreads();
  return total;
}

// Rows of elements side by side, `lanes` threads for each.
template <int V>
__device__ __forceinline__ void short_rows(const Element* __restrict__ x, Element* __restrict__ y, u64 rows, u64 size,
                                           u32 log_lanes, u32 kind) {
  const u32 lanes = 1u << log_lanes, lane = threadIdx.x & (lanes - 1u), per_block = blockDim.x >> log_lanes;
  const u64 stride = (u64)gridDim.x * per_block;
  for (u64 first = (u64)blockIdx.x * per_block; first < rows; first += stride) {
    const u64 row = first + (threadIdx.x >> log_lanes);
    Wide total = Step::template start<Wide>();
    if (row < rows) total = fold_packs<V>(x + row * size, lane, size / V, lanes);
    total = fold_lanes(total, lanes);
    if (lane == 0u && row < rows) y[row] = finish(total, size, kind);
  }
}

// Rows in parts of `packs` packs, a block for each; the parts [parts, rows] are joined later.
template <int V>
__device__ __forceinline__ void long_rows(const Element* __restrict__ x, Element* __restrict__ y, Wide* parts, u64 rows,
                                          u64 size, u64 packs, u64 blocks, u32 kind) {
  __shared__ Wide shared[32];
  for (u64 block = blockIdx.x; block < blocks; block += gridDim.x) {
    const u64 part = block / rows, row = block - part * rows;
    u64 end = (part + 1) * packs;
    if (end > size / V) end = size / V;
    Wide total = fold_packs<V>(x + row * size, part * packs + threadIdx.x, end, blockDim.x);
    total = fold_block(total, shared);
    if (threadIdx.x == 0u) put(y, parts, block, total, size, kind);
  }
}

// Columns of matrices [outer, rows, width]; the parts [parts, outer, width] are joined later.
template <int V>
__device__ __forceinline__ void columns(const Element* __restrict__ x, Element* __restrict__ y, Wide* parts, u64 outer,
                                        const Columns& cut, u64 blocks, u32 kind) {
  __shared__ Wide shared[256 * V];
  for (u64 block = blockIdx.x; block < blocks; block += gridDim.x) {
    const u64 rest = block / cut.tiles;
    const u32 tile = (u32)(block - rest * cut.tiles);
    const u64 part = rest / outer, matrix = rest - part * outer;
    const Element* from = x + matrix * cut.rows * cut.width;
    Wide totals[V];
    u64 column;
    const bool writes = fold_columns<Step, V, Lane>(cut, part, tile, shared, totals, column, [&](u64 row, u64 at, Lane(&out)[V]) {
      const Pack<Element, V> pack = load_pack<V>(from + row * cut.width + at);
#pragma unroll
      for (int e = 0; e < V; e++) out[e] = N::lane(pack.at[e]);
    });
    if (writes) {
#pragma unroll
      for (int e = 0; e < V; e++) put(y, parts, rest * cut.width + column + e, totals[e], cut.rows, kind);
    }
    __syncthreads();
  }
}

#define REDUCE_KERNELS(V)                                                                                            \
  extern "C" __global__ void short_rows_##V(const Element* x, Element* y, u64 rows, u64 size, u32 log_lanes, u32 kind) { \
    short_rows<V>(x, y, rows, size, log_lanes, kind);                                                                \
  }                                                                                                                  \
  extern "C" __global__ void long_rows_##V(const Element* x, Element* y, Wide* parts, u64 rows, u64 size, u64 packs, \
                                           u64 blocks, u32 kind) {                                                   \
    long_rows<V>(x, y, parts, rows, size, packs, blocks, kind);                                                      \
  }                                                                                                                  \
  extern "C" __global__ void columns_##V(const Element* x, Element* y, Wide* parts, u64 outer, Columns cut,          \
                                         u64 blocks, u32 kind) {                                                     \
    columns<V>(x, y, parts, outer, cut, blocks, kind);                                                               \
  }
// A pack has 16 bytes, or 4 of one each, or one element.
#if ELEMENT_BYTES == 2
REDUCE_KERNELS(8)
#elif ELEMENT_BYTES <= 4
REDUCE_KERNELS(4)
#else
REDUCE_KERNELS(2)
#endif
REDUCE_KERNELS(1)

extern "C" __global__ void join_totals(const Wide* parts, u64 count, u64 width, Element* y, u64 reduced, u32 kind) {
  __shared__ Wide shared[256];
  const u64 column = (u64)blockIdx.x * 32u + (threadIdx.x & 31u);
  const Wide total = join_parts<Step>(parts, count, width, column, shared);
  if (threadIdx.x < 32u && column < width) y[column] = finish(total, reduced, kind);
}

// Where the elements of a result lie: axes that stay and axes that are reduced, from the innermost.
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

// Any axes: 2^log_lanes threads for a result, up to a warp.
extern "C" __global__ void any_axes(const Element* __restrict__ x, Element* __restrict__ y, Axes kept, Axes reduced, u64 results,
                                    u64 count, u32 log_lanes, u32 kind) {
  const u32 lanes = 1u << log_lanes, lane = threadIdx.x & (lanes - 1u), per_block = blockDim.x >> log_lanes;
  const u64 stride = (u64)gridDim.x * per_block;
  for (u64 first = (u64)blockIdx.x * per_block; first < results; first += stride) {
    const u64 result = first + (threadIdx.x >> log_lanes);
    Wide total = Step::template start<Wide>();
    if (result < results) {
      const Element* from = x + place(result, kept);
      for (u64 i = lane; i < count; i += lanes)
        total = Step::step(total, (Wide)N::lane(from[place(i, reduced)]));
    }
    total = fold_lanes(total, lanes);
    if (lane == 0u && result < results) y[result] = finish(total, count, kind);
  }
}

// The same with a block for a result.
extern "C" __global__ void any_axes_by_block(const Element* __restrict__ x, Element* __restrict__ y, Axes kept, Axes reduced, u64 results,
                                    u64 count, u32 kind) {
  __shared__ Wide shared[32];
  for (u64 result = blockIdx.x; result < results; result += gridDim.x) {
    const Element* from = x + place(result, kept);
    Wide total = Step::template start<Wide>();
    for (u64 i = threadIdx.x; i < count; i += blockDim.x)
      total = Step::step(total, (Wide)N::lane(from[place(i, reduced)]));
    total = fold_block(total, shared);
    if (threadIdx.x == 0u) y[result] = finish(total, count, kind);
  }
}
