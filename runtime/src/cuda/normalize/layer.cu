// Layer normalisation and its gradient. `Element` is defined where this is
// included.
#include "common.cuh"
#include "columns.cuh"
#include "rows.cuh"

typedef Number<Element> N;
typedef N::Lane Lane;

// Statistics have the type of the elements, or are floats.
__device__ __forceinline__ Lane statistic(const void* from, u64 row, u32 own) {
  return own ? N::lane(((const Element*)from)[row]) : (Lane)((const float*)from)[row];
}
__device__ __forceinline__ void set_statistic(void* to, u64 row, double x, u32 own) {
  if (to == 0) return;
  if (own) ((Element*)to)[row] = N::narrow((Lane)x);
  else ((float*)to)[row] = (float)x;
}

// Y = (X - mean) inverse scale + bias; y may be x. Without a centre the mean square is the variance.
template <int V, bool WARP>
__device__ __forceinline__ void layer_rows(const Element* x, const Element* __restrict__ scale,
                                           const Element* __restrict__ bias, Element* y, void* mean, void* inverse,
                                           u64 rows, u32 size, double epsilon, u32 centred, u32 own) {
  __shared__ double wide[32];
  const u32 threads = WARP ? 32u : blockDim.x, thread = WARP ? threadIdx.x & 31u : threadIdx.x;
  const u32 teams = blockDim.x / threads;
  for (u64 number = (u64)blockIdx.x * teams + (WARP ? threadIdx.x >> 5 : 0u); number < rows; number += (u64)gridDim.x * teams) {
    Row<V, 4> row(x + number * size, size / V, thread, threads);
    Element* to = y + number * size;
    double sum = 0.0;
    row.load([&](u32, const Pack<Element, V>& pack) {
      Lane terms[V];
#pragma unroll
      for (int e = 0; e < V; e++) terms[e] = N::lane(pack.at[e]);
      sum += (double)pack_sum<V>(terms);
    });
    const double average = centred ? team_sum<WARP>(sum, wide) / (double)size : 0.0;
    const Lane shift = (Lane)average;
    double squares = 0.0;
    row.again([&](u32, const Pack<Element, V>& pack) {
      Lane terms[V];
#pragma unroll
      for (int e = 0; e < V; e++) {
        const Lane from_mean = N::lane(pack.at[e]) - shift;
        terms[e] = from_mean * from_mean;
      }
      squares += (double)pack_sum<V>(terms);
    });
    squares = team_sum<WARP>(squares, wide);
    const double deviation = 1.0 / sqrt(squares / (double)size + epsilon);
    const Lane factor = (Lane)deviation;
    if (thread == 0u) {
      set_statistic(mean, number, average, own);
      set_statistic(inverse, number, deviation, own);
    }
    row.again([&](u32 i, const Pack<Element, V>& pack) {
      const Pack<Element, V> scales = load_pack<V>(scale + (u64)i * V);
      Pack<Element, V> result;
      if (bias) {
        const Pack<Element, V> biases = load_pack<V>(bias + (u64)i * V);
#pragma unroll
        for (int e = 0; e < V; e++)
          result.at[e] = N::narrow((N::lane(pack.at[e]) - shift) * factor * N::lane(scales.at[e]) + N::lane(biases.at[e]));
      } else {
#pragma unroll
        for (int e = 0; e < V; e++) result.at[e] = N::narrow((N::lane(pack.at[e]) - shift) * factor * N::lane(scales.at[e]));
      }
      store_pack(to + (u64)i * V, result);
    });
  }
}

// What the gradient reads; `fourth` is the mean, or the bias where X is worked out from the output.
struct Given {
  const Element* dy;
  const Element* x;
  const Element* scale;
  const void* fourth;
  const void* inverse;
  Element* dx;
  Lane* parts;  // of dScale [teams, size], and behind them of dBias
  u64 rows;
  u32 size, centred, own, of_scale, of_bias, unused;
};

// Rows after which the totals of a thread are added to its parts in memory.
#define ROWS 64

// With n the normalised input and g = dY scale: dX = inverse (g - mean(g) - n mean(g n)), where mean(g) is
// left out without a centre; dScale = sum of dY n and dBias = sum of dY over rows. A team takes rows in turns;
// its threads keep their columns, of which there are PACKS * V, so that all is read once.
template <int V, int PACKS, bool WARP, bool INVERTED>
__device__ __forceinline__ void layer_grad_rows(const Given& given) {
  __shared__ double wide[32];
  const u32 threads = WARP ? 32u : blockDim.x, thread = WARP ? threadIdx.x & 31u : threadIdx.x;
  const u64 teams = (u64)gridDim.x * (blockDim.x / threads);
  const u64 team = (u64)blockIdx.x * (blockDim.x / threads) + (WARP ? threadIdx.x >> 5 : 0u);
  const u32 size = given.size, packs = size / V;
  const Element* bias = INVERTED ? (const Element*)given.fourth : 0;
  Lane scales[PACKS][V], biases[PACKS][V];
#pragma unroll
  for (int n = 0; n < PACKS; n++)
#pragma unroll
    for (int e = 0; e < V; e++) scales[n][e] = biases[n][e] = 0;
  Lane* of_scale = given.parts + team * size;
  Lane* of_bias = given.parts + (teams + team) * size;
  u32 since = 0;
  bool added = false;
  for (u64 row = team; row < given.rows; row += teams) {
    const Lane factor = statistic(given.inverse, row, given.own);
    const Lane shift = !INVERTED && given.fourth ? statistic(given.fourth, row, given.own) : (Lane)0;
    Pack<Element, V> dy[PACKS], x[PACKS];
    double along = 0.0, across = 0.0;
#pragma unroll
    for (int n = 0; n < PACKS; n++) {
      const u32 i = thread + n * threads;
      if (i < packs) {
        dy[n] = load_pack<V>(given.dy + row * size + (u64)i * V);
        x[n] = load_pack<V>(given.x + row * size + (u64)i * V);
      } else {
        dy[n] = x[n] = Pack<Element, V>();
      }
    }
#pragma unroll
    for (int n = 0; n < PACKS; n++) {
      const u32 i = thread + n * threads;
      if (i < packs) {
        const Pack<Element, V> scale = load_pack<V>(given.scale + (u64)i * V);
        Pack<Element, V> shifts;
        if (INVERTED && bias) shifts = load_pack<V>(bias + (u64)i * V);
        Lane first[V], second[V];
#pragma unroll
        for (int e = 0; e < V; e++) {
          const Lane d = N::lane(dy[n].at[e]), s = N::lane(scale.at[e]);
          Lane normal;
          if (INVERTED) {
            const Lane unbiased = N::lane(x[n].at[e]) - (bias ? N::lane(shifts.at[e]) : s);
            normal = unbiased / s;
            first[e] = d * unbiased;
          } else {
            normal = (N::lane(x[n].at[e]) - shift) * factor;
            first[e] = d * s * normal;
          }
          second[e] = d * s;
          scales[n][e] += d * normal;
          biases[n][e] += d;
        }
        along += (double)pack_sum<V>(first);
        across += (double)pack_sum<V>(second);
      }
    }
    if (given.dx) {
      const Lane mean_along = (Lane)(team_sum<WARP>(along, wide) / (double)size);
      const Lane mean_across = given.centred ? (Lane)(team_sum<WARP>(across, wide) / (double)size) : (Lane)0;
#pragma unroll
      for (int n = 0; n < PACKS; n++) {
        const u32 i = thread + n * threads;
        if (i < packs) {
          const Pack<Element, V> scale = load_pack<V>(given.scale + (u64)i * V);
          Pack<Element, V> shifts, result;
          if (INVERTED && bias) shifts = load_pack<V>(bias + (u64)i * V);
#pragma unroll
          for (int e = 0; e < V; e++) {
            const Lane s = N::lane(scale.at[e]);
            const Lane normal = INVERTED ? (N::lane(x[n].at[e]) - (bias ? N::lane(shifts.at[e]) : s)) / s
                                         : (N::lane(x[n].at[e]) - shift) * factor;
            result.at[e] = N::narrow((N::lane(dy[n].at[e]) * s - mean_across - normal * mean_along) * factor);
          }
          store_pack(given.dx + row * size + (u64)i * V, result);
        }
      }
    }
    // Long sums are made of short ones.
    if (++since == ROWS || row + teams >= given.rows) {
#pragma unroll
      for (int n = 0; n < PACKS; n++) {
        const u32 i = thread + n * threads;
        if (i < packs) {
#pragma unroll
          for (int e = 0; e < V; e++) {
            const u64 at = (u64)i * V + e;
            if (given.of_scale) of_scale[at] = added ? of_scale[at] + scales[n][e] : scales[n][e];
            if (given.of_bias) of_bias[at] = added ? of_bias[at] + biases[n][e] : biases[n][e];
            scales[n][e] = biases[n][e] = 0;
          }
        }
      }
      since = 0;
      added = true;
    }
  }
}

#define LAYER_KERNELS(V)                                                                                      \
  extern "C" __global__ void __launch_bounds__(512, 1)                                                                  \
      layer_warps_##V(const Element* x, const Element* scale, const Element* bias, Element* y, void* mean,           \
                      void* inverse, u64 rows, u32 size, double epsilon, u32 centred, u32 own) {                     \
    layer_rows<V, true>(x, scale, bias, y, mean, inverse, rows, size, epsilon, centred, own);                        \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(512, 1)                                                                  \
      layer_blocks_##V(const Element* x, const Element* scale, const Element* bias, Element* y, void* mean,          \
                       void* inverse, u64 rows, u32 size, double epsilon, u32 centred, u32 own) {                    \
    layer_rows<V, false>(x, scale, bias, y, mean, inverse, rows, size, epsilon, centred, own);                       \
  }
#define LAYER_GRADIENTS(V, PACKS, THREADS)                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) layer_grad_warps_##V(Given given) {                             \
    layer_grad_rows<V, PACKS, true, false>(given);                                                                   \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) layer_grad_blocks_##V(Given given) {                            \
    layer_grad_rows<V, PACKS, false, false>(given);                                                                  \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) inverted_grad_warps_##V(Given given) {                          \
    layer_grad_rows<V, PACKS, true, true>(given);                                                                    \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) inverted_grad_blocks_##V(Given given) {                         \
    layer_grad_rows<V, PACKS, false, true>(given);                                                                   \
  }
#if ELEMENT_BYTES == 2
LAYER_KERNELS(8)
#elif ELEMENT_BYTES == 4
LAYER_KERNELS(4)
#else
LAYER_KERNELS(2)
#endif
LAYER_KERNELS(1)
// Of 16 bits no more than 4 at once: the sums of columns take registers.
#if ELEMENT_BYTES == 8
LAYER_GRADIENTS(2, 1, 512)
LAYER_GRADIENTS(1, 1, 512)
#else
LAYER_GRADIENTS(4, 1, 1024)
LAYER_GRADIENTS(1, 2, 512)
#endif

// dX of rows that are too long to be kept: they are read twice.
template <bool INVERTED> __device__ __forceinline__ void layer_grad_long(const Given& given) {
  __shared__ double wide[32];
  const Element* bias = INVERTED ? (const Element*)given.fourth : 0;
  for (u64 row = blockIdx.x; row < given.rows; row += gridDim.x) {
    const Lane factor = statistic(given.inverse, row, given.own);
    const Lane shift = !INVERTED && given.fourth ? statistic(given.fourth, row, given.own) : (Lane)0;
    const u64 start = row * given.size;
    double along = 0.0, across = 0.0;
    for (u32 i = threadIdx.x; i < given.size; i += blockDim.x) {
      const Lane d = N::lane(given.dy[start + i]), s = N::lane(given.scale[i]), of = N::lane(given.x[start + i]);
      along += (double)(INVERTED ? d * (of - (bias ? N::lane(bias[i]) : s)) : d * s * ((of - shift) * factor));
      across += (double)(d * s);
    }
    const Lane mean_along = (Lane)(block_sum(along, wide) / (double)given.size);
    const Lane mean_across = given.centred ? (Lane)(block_sum(across, wide) / (double)given.size) : (Lane)0;
    for (u32 i = threadIdx.x; i < given.size; i += blockDim.x) {
      const Lane d = N::lane(given.dy[start + i]), s = N::lane(given.scale[i]), of = N::lane(given.x[start + i]);
      const Lane normal = INVERTED ? (of - (bias ? N::lane(bias[i]) : s)) / s : (of - shift) * factor;
      given.dx[start + i] = N::narrow((d * s - mean_across - normal * mean_along) * factor);
    }
  }
}
extern "C" __global__ void __launch_bounds__(512, 1) layer_grad_long(Given given) { layer_grad_long<false>(given); }
extern "C" __global__ void __launch_bounds__(512, 1) inverted_grad_long(Given given) { layer_grad_long<true>(given); }

// Parts of dScale and dBias of such rows.
template <bool INVERTED> __device__ __forceinline__ void layer_sums(const Given& given, const Columns& cut, u32 parts) {
  __shared__ Lane shared[256];
  const u64 part = blockIdx.x / cut.tiles;
  const u32 tile = blockIdx.x - (u32)part * cut.tiles;
  const Element* bias = INVERTED ? (const Element*)given.fourth : 0;
  Lane totals[1];
  u64 column;
  for (u32 which = 0; which < 2u; which++) {
    if (which == 0u ? !given.of_scale : !given.of_bias) continue;
    const bool writes = fold_columns<Sum, 1, Lane>(cut, part, tile, shared, totals, column, [&](u64 row, u64 at, Lane(&y)[1]) {
      const u64 place = row * given.size + at;
      const Lane d = N::lane(given.dy[place]);
      if (which == 1u) {
        y[0] = d;
      } else if (INVERTED) {
        const Lane s = N::lane(given.scale[at]);
        y[0] = d * ((N::lane(given.x[place]) - (bias ? N::lane(bias[at]) : s)) / s);
      } else {
        const Lane shift = given.fourth ? statistic(given.fourth, row, given.own) : (Lane)0;
        y[0] = d * ((N::lane(given.x[place]) - shift) * statistic(given.inverse, row, given.own));
      }
    });
    if (writes) given.parts[((u64)which * parts + part) * cut.width + column] = totals[0];
    __syncthreads();
  }
}
extern "C" __global__ void layer_sums(Given given, Columns cut, u32 parts) { layer_sums<false>(given, cut, parts); }
extern "C" __global__ void inverted_sums(Given given, Columns cut, u32 parts) { layer_sums<true>(given, cut, parts); }

// Joins parts, in doubles.
extern "C" __global__ void join_layer(const Lane* parts, u64 count, u64 width, Element* y) {
  __shared__ double shared[256];
  const u32 lane = threadIdx.x & 31u, line = threadIdx.x >> 5;
  const u64 column = (u64)blockIdx.x * 32u + lane;
  double total = 0.0;
  if (column < width)
    for (u64 part = line; part < count; part += 8u) total += (double)parts[part * width + column];
  shared[threadIdx.x] = total;
  __syncthreads();
  if (line == 0u && column < width) {
    for (u32 other = 1u; other < 8u; other++) total += shared[other * 32u + lane];
    y[column] = N::narrow((Lane)total);
  }
}
