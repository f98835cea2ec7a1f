// Compressed activations, with one direction or several. `Element` is defined where this is included.
#include "common.cuh"
#include "columns.cuh"

typedef Number<Element> N;
typedef N::Lane Lane;

// Rows of `features` elements as sub-tokens of `size`, `groups` to a row; the last ones may be shorter, or
// empty.
struct Cut {
  u64 count;  // of sub-tokens, or of rows of them
  u64 features, size;
  Divisor groups;
};

__device__ __forceinline__ u64 length_of(const Cut& cut, u64 group) {
  const u64 start = group * cut.size;
  if (start >= cut.features) return 0;
  return cut.features - start < cut.size ? cut.features - start : cut.size;
}

// A thread's share of the product of a sub-token with a direction: packs `lane`, `lane + lanes`, ..
template <int V>
__device__ __forceinline__ Lane dot(const Element* __restrict__ x, const Element* __restrict__ v, u64 length,
                                    u32 lane, u32 lanes) {
  const u64 step = (u64)lanes * V;
  N::Wide total = 0;
  u64 m = (u64)lane * V;
  while (m < length) {
    Lane sums[V];
#pragma unroll
    for (int e = 0; e < V; e++) sums[e] = 0;
#pragma unroll(V > 4 ? 2 : 4)
    for (u32 n = 0; n < DEPTH && m < length; n++, m += step) {
      const Pack<Element, V> a = load_pack<V>(x + m), b = load_pack<V>(v + m);
#pragma unroll
      for (int e = 0; e < V; e++) sums[e] += N::lane(a.at[e]) * N::lane(b.at[e]);
    }
#pragma unroll
    for (int half = V / 2; half > 0; half /= 2)
#pragma unroll
      for (int e = 0; e < half; e++) sums[e] += sums[e + half];
    total += (N::Wide)sums[0];
  }
  return (Lane)total;
}

__device__ __forceinline__ Lane sum_over(Lane sum, u32 lanes) {
  for (u32 other = lanes >> 1; other > 0u; other >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, other);
  return sum;
}

// z[i] = x[i] . v, with 2^log_lanes neighbouring threads for a sub-token.
template <int V>
__device__ __forceinline__ void compress(const Element* __restrict__ x, const Element* __restrict__ v,
                                         Element* __restrict__ z, const Cut& cut, u32 log_lanes) {
  const u32 lanes = 1u << log_lanes, lane = threadIdx.x & (lanes - 1u), per_block = blockDim.x >> log_lanes;
  const u64 stride = (u64)gridDim.x * per_block;
  for (u64 first = (u64)blockIdx.x * per_block; first < cut.count; first += stride) {
    const u64 i = first + (threadIdx.x >> log_lanes);
    Lane sum = 0;
    if (i < cut.count) {
      const u64 row = quotient(i, cut.groups), group = i - row * cut.groups.divisor;
      sum = dot<V>(x + row * cut.features + group * cut.size, v, length_of(cut, group), lane, lanes);
    }
    sum = sum_over(sum, lanes);
    if (lane == 0u && i < cut.count) z[i] = N::narrow(sum);
  }
}

// Sub-tokens across channels: z has V places of a group per thread.
template <int V>
__device__ __forceinline__ void compress_places(const Element* __restrict__ x, const Element* __restrict__ v,
                                                Element* __restrict__ z, const Cut& cut, const Divisor& packs) {
  const u64 places = packs.divisor * V, count = cut.count * packs.divisor;
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u64 line = quotient(i, packs), at = (i - line * packs.divisor) * V;
    const u64 row = quotient(line, cut.groups), group = line - row * cut.groups.divisor;
    const u64 length = length_of(cut, group);
    const Element* from = x + (row * cut.features + group * cut.size) * places + at;
    Lane sums[V];
#pragma unroll
    for (int e = 0; e < V; e++) sums[e] = 0;
#pragma unroll 4
    for (u64 m = 0; m < length; m++, from += places) {
      const Lane factor = N::lane(v[m]);
      const Pack<Element, V> pack = load_pack<V>(from);
#pragma unroll
      for (int e = 0; e < V; e++) sums[e] += N::lane(pack.at[e]) * factor;
    }
    Pack<Element, V> result;
#pragma unroll
    for (int e = 0; e < V; e++) result.at[e] = N::narrow(sums[e]);
    store_pack(z + line * places + at, result);
  }
}

// Multiples of directions: `rank` for a sub-token, its group's own ones or those of all.
struct Spread {
  u64 count;  // of what threads take in turns
  u64 features, size, rank, by_group;
  Divisor packs;  // of a row of the result
  Divisor cut;    // into sub-tokens: by their size, or by blocks of features of one
  Divisor groups;
  float scale;
  u32 unused;
};

// y[row, g size + m] = sum over k of scale v[g, k, m] p[row, g rank + k]; a pack of y lies in one sub-token.
template <int V>
__device__ __forceinline__ void spread(const Element* __restrict__ p, const Element* __restrict__ v,
                                       Element* __restrict__ y, const Spread& how) {
  const Lane scale = (Lane)how.scale;
  const u64 width = how.groups.divisor * how.rank;
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < how.count; i += stride) {
    const u64 row = quotient(i, how.packs), feature = (i - row * how.packs.divisor) * V;
    const u64 group = quotient(feature, how.cut), m = feature - group * how.size;
    const Element* factors = p + row * width + group * how.rank;
    const Element* direction = v + (how.by_group ? group * how.rank * how.size : 0) + m;
    Lane sums[V];
#pragma unroll
    for (int e = 0; e < V; e++) sums[e] = 0;
    for (u64 k = 0; k < how.rank; k++, direction += how.size) {
      const Lane factor = N::lane(factors[k]);
      const Pack<Element, V> pack = load_pack<V>(direction);
#pragma unroll
      for (int e = 0; e < V; e++) {
        const Lane term = N::lane(pack.at[e]) * scale * factor;
        sums[e] = k == 0 ? term : sums[e] + term;
      }
    }
    Pack<Element, V> result;
#pragma unroll
    for (int e = 0; e < V; e++) result.at[e] = N::narrow(sums[e]);
    store_pack(y + i * V, result);
  }
}

// Features that a thread writes from one reading of p.
#define FEATURES 8

// The same where what lies side by side are places: y[row, g size + m, place], p[row, g rank + k, place].
template <int V>
__device__ __forceinline__ void repeat(const Element* __restrict__ p, const Element* __restrict__ v,
                                       Element* __restrict__ y, const Spread& how) {
  const Lane scale = (Lane)how.scale;
  const u64 places = how.packs.divisor * V;
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < how.count; i += stride) {
    const u64 line = quotient(i, how.packs), at = (i - line * how.packs.divisor) * V;
    const u64 of_group = quotient(line, how.cut);
    const u64 row = quotient(of_group, how.groups), group = of_group - row * how.groups.divisor;
    const u64 first = (line - of_group * how.cut.divisor) * FEATURES, start = group * how.size;
    u64 end = start >= how.features ? 0 : how.features - start;
    if (end > how.size) end = how.size;
    if (end > first + FEATURES) end = first + FEATURES;
    if (first >= end || how.rank == 0) continue;
    const Element* factors = p + of_group * how.rank * places + at;
    const Element* direction = v + (how.by_group ? group * how.rank * how.size : 0);
    Element* to = y + (row * how.features + start + first) * places + at;
    const Pack<Element, V> only = load_pack<V>(factors);
    for (u64 m = first; m < end; m++, to += places) {
      Lane sums[V];
      const Lane factor = N::lane(direction[m]) * scale;
#pragma unroll
      for (int e = 0; e < V; e++) sums[e] = factor * N::lane(only.at[e]);
      for (u64 k = 1; k < how.rank; k++) {
        const Lane another = N::lane(direction[k * how.size + m]) * scale;
        const Pack<Element, V> pack = load_pack<V>(factors + k * places);
#pragma unroll
        for (int e = 0; e < V; e++) sums[e] += another * N::lane(pack.at[e]);
      }
      Pack<Element, V> result;
#pragma unroll
      for (int e = 0; e < V; e++) result.at[e] = N::narrow(sums[e]);
      store_pack(to, result);
    }
  }
}

// The products of a sub-token with `rank` directions: a warp reads it once where it is not long.
template <int V>
__device__ __forceinline__ void project(const Element* __restrict__ x, const Element* __restrict__ v,
                                        Element* __restrict__ z, const Cut& cut, u64 rank, u32 by_group,
                                        u32 log_lanes) {
  const u32 lanes = 1u << log_lanes, lane = threadIdx.x & (lanes - 1u), per_block = blockDim.x >> log_lanes;
  const u64 stride = (u64)gridDim.x * per_block;
  constexpr int HELD = V > 4 ? 2 : 4;
  const bool held = cut.size <= (u64)lanes * V * HELD;
  for (u64 first = (u64)blockIdx.x * per_block; first < cut.count; first += stride) {
    const u64 i = first + (threadIdx.x >> log_lanes);
    const bool inside = i < cut.count;
    const u64 row = quotient(inside ? i : 0, cut.groups), group = (inside ? i : 0) - row * cut.groups.divisor;
    const u64 length = inside ? length_of(cut, group) : 0;
    const Element* from = x + row * cut.features + group * cut.size;
    const Element* direction = v + (by_group ? group * rank * cut.size : 0);
    Pack<Element, V> packs[HELD];
    if (held) {
#pragma unroll
      for (int n = 0; n < HELD; n++) {
        const u64 m = ((u64)n * lanes + lane) * V;
        packs[n] = m < length ? load_pack<V>(from + m) : Pack<Element, V>();
      }
    }
    for (u64 k = 0; k < rank; k++, direction += cut.size) {
      Lane sum = 0;
      if (held) {
#pragma unroll
        for (int n = 0; n < HELD; n++) {
          const u64 m = ((u64)n * lanes + lane) * V;
          if (m < length) {
            const Pack<Element, V> pack = load_pack<V>(direction + m);
#pragma unroll
            for (int e = 0; e < V; e++) sum += N::lane(packs[n].at[e]) * N::lane(pack.at[e]);
          }
        }
      } else {
        sum = dot<V>(from, direction, length, lane, lanes);
      }
      sum = sum_over(sum, lanes);
      if (lane == 0u && inside) z[i * rank + k] = N::narrow(sum);
    }
  }
}

// Parts of the sums of columns of x.
template <int V>
__device__ __forceinline__ void sum_features(const Element* __restrict__ x, double* parts, const Columns& cut) {
  __shared__ double shared[256 * V];
  double totals[V];
  u64 column;
  const u64 part = blockIdx.x / cut.tiles;
  const u32 tile = blockIdx.x - (u32)part * cut.tiles;
  const bool writes = fold_columns<Sum, V, Lane>(cut, part, tile, shared, totals, column, [&](u64 row, u64 at, Lane(&y)[V]) {
    const Pack<Element, V> pack = load_pack<V>(x + row * cut.width + at);
#pragma unroll
    for (int e = 0; e < V; e++) y[e] = N::lane(pack.at[e]);
  });
  if (writes)
#pragma unroll
    for (int e = 0; e < V; e++) parts[part * cut.width + column + e] = totals[e];
}

// Parts of the sums of columns of dY, of which those of a sub-token are multiplied by its number in z.
template <int V>
__device__ __forceinline__ void weigh_features(const Element* __restrict__ z, const Element* __restrict__ dy,
                                               double* parts, const Columns& cut, const Divisor& size, u64 groups) {
  __shared__ double shared[256 * V];
  double totals[V];
  u64 column;
  const u64 part = blockIdx.x / cut.tiles;
  const u32 tile = blockIdx.x - (u32)part * cut.tiles;
  const u32 side = 1u << cut.across;
  const u64 group = quotient(((u64)tile * side + (threadIdx.x & (side - 1u))) * V, size);
  const bool writes = fold_columns<Sum, V, Lane>(cut, part, tile, shared, totals, column, [&](u64 row, u64 at, Lane(&y)[V]) {
    const Lane factor = N::lane(z[row * groups + group]);
    const Pack<Element, V> pack = load_pack<V>(dy + row * cut.width + at);
#pragma unroll
    for (int e = 0; e < V; e++) y[e] = factor * N::lane(pack.at[e]);
  });
  if (writes)
#pragma unroll
    for (int e = 0; e < V; e++) parts[part * cut.width + column + e] = totals[e];
}

#define VELORA_KERNELS(V)                                                                                          \
  extern "C" __global__ void compress_##V(const Element* x, const Element* v, Element* z, Cut cut, u32 log_lanes) { \
    compress<V>(x, v, z, cut, log_lanes);                                                                          \
  }                                                                                                                \
  extern "C" __global__ void compress_places_##V(const Element* x, const Element* v, Element* z, Cut cut,          \
                                                 Divisor packs) {                                                  \
    compress_places<V>(x, v, z, cut, packs);                                                                       \
  }                                                                                                                \
  extern "C" __global__ void spread_##V(const Element* p, const Element* v, Element* y, Spread how) {              \
    spread<V>(p, v, y, how);                                                                                       \
  }                                                                                                                \
  extern "C" __global__ void repeat_##V(const Element* p, const Element* v, Element* y, Spread how) {              \
    repeat<V>(p, v, y, how);                                                                                       \
  }                                                                                                                \
  extern "C" __global__ void project_##V(const Element* x, const Element* v, Element* z, Cut cut, u64 rank,        \
                                         u32 by_group, u32 log_lanes) {                                            \
    project<V>(x, v, z, cut, rank, by_group, log_lanes);                                                           \
  }                                                                                                                \
  extern "C" __global__ void sum_features_##V(const Element* x, double* parts, Columns cut) {                      \
    sum_features<V>(x, parts, cut);                                                                                \
  }                                                                                                                \
  extern "C" __global__ void weigh_features_##V(const Element* z, const Element* dy, double* parts, Columns cut,   \
                                                Divisor size, u64 groups) {                                        \
    weigh_features<V>(z, dy, parts, cut, size, groups);                                                            \
  }
// A pack has at most 16 bytes.
#if ELEMENT_BYTES == 2
VELORA_KERNELS(8)
#endif
#if ELEMENT_BYTES <= 4
VELORA_KERNELS(4)
#endif
VELORA_KERNELS(2)
VELORA_KERNELS(1)

// Totals of the parts of columns.
extern "C" __global__ void join_features(const double* parts, u64 count, u64 width, double* totals) {
  __shared__ double shared[256];
  const u64 column = (u64)blockIdx.x * 32u + (threadIdx.x & 31u);
  const double total = join_parts<Sum>(parts, count, width, column, shared);
  if (threadIdx.x < 32u && column < width) totals[column] = total;
}

// The sums over rows and places of channels [rows, features, places], one block each.
extern "C" __global__ void sum_channels(const Element* __restrict__ x, double* totals, u64 rows, u64 features, u64 places) {
  __shared__ double shared[32];
  for (u64 feature = blockIdx.x; feature < features; feature += gridDim.x) {
    double total = 0.0;
    for (u64 row = 0; row < rows; row++) {
      const Element* from = x + (row * features + feature) * places;
      for (u64 place = threadIdx.x; place < places; place += blockDim.x) total += (double)N::lane(from[place]);
    }
    total = block_sum(total, shared);
    if (threadIdx.x == 0u) totals[feature] = total;
  }
}

// The gradient of a scale, from the parts of weighted sums.
extern "C" __global__ void join_scale_grad(const double* parts, u64 count, u64 width, const Element* v, Element* y,
                                           float scale, Divisor size) {
  __shared__ double shared[256];
  const u64 column = (u64)blockIdx.x * 32u + (threadIdx.x & 31u);
  const double total = join_parts<Sum>(parts, count, width, column, shared);
  if (threadIdx.x < 32u && column < width) {
    const u64 m = column - quotient(column, size) * size.divisor;
    y[column] = N::narrow(N::lane(v[m]) * (Lane)scale * (Lane)total);
  }
}

#define LEAST_NORM 1.17549435082228750797e-38

// Directions of length 1, even where there is none: the sums of all sub-tokens (one block), or those of each
// group (a block for each), of `features` totals; `work` has `size` doubles per block.
extern "C" __global__ void normalise_sums(const double* totals, double* work, Element* v, u64 features, u64 size,
                                          u32 by_group) {
  __shared__ double shared[32];
  double* sums = work + blockIdx.x * size;
  double square = 0.0;
  for (u64 m = threadIdx.x; m < size; m += blockDim.x) {
    double sum = 0.0;
    if (by_group) {
      const u64 at = blockIdx.x * size + m;
      if (at < features) sum = totals[at];
    } else {
      for (u64 at = m; at < features; at += size) sum += totals[at];
    }
    sums[m] = sum;
    square += sum * sum;
  }
  const double norm = sqrt(block_sum(square, shared));
  const double even = 1.0 / sqrt((double)size);
  for (u64 m = threadIdx.x; m < size; m += blockDim.x) {
    const double entry = norm < LEAST_NORM ? even : sums[m] / norm;
    v[blockIdx.x * size + m] = N::narrow((Lane)entry);
  }
}
