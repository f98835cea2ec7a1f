// Softmax and its gradient. `Element` is defined where this is included.
#include "common.cuh"
#include "rows.cuh"

typedef Number<Element> N;
typedef N::Lane Lane;

// `SoftmaxKind` of the launcher.
#define PLAIN 0u
#define LOG 1u
#define HARD 2u

// Rows of elements side by side, a warp or a block for each; y may be x.
template <int V, bool WARP>
__device__ __forceinline__ void softmax_rows(const Element* x, Element* y, u64 rows, u32 size, u32 kind) {
  __shared__ double wide[32];
  __shared__ Lane narrow[32];
  const u32 threads = WARP ? 32u : blockDim.x, thread = WARP ? threadIdx.x & 31u : threadIdx.x;
  const u32 teams = blockDim.x / threads;
  for (u64 number = (u64)blockIdx.x * teams + (WARP ? threadIdx.x >> 5 : 0u); number < rows; number += (u64)gridDim.x * teams) {
    Row<V, 4> row(x + number * size, size / V, thread, threads);
    Element* to = y + number * size;
    Lane greatest = lowest(Lane());
    row.load([&](u32, const Pack<Element, V>& pack) {
#pragma unroll
      for (int e = 0; e < V; e++) greatest = max_or_nan(greatest, N::lane(pack.at[e]));
    });
    greatest = team_max<WARP>(greatest, narrow, lowest(Lane()));
    if (kind == HARD) {
      // The first of them; none where there is a NaN, and then the first of all.
      u32 first = 0xffffffffu;
      row.again([&](u32 i, const Pack<Element, V>& pack) {
#pragma unroll
        for (int e = V - 1; e >= 0; e--)
          if (N::lane(pack.at[e]) == greatest && i * V + e < first) first = i * V + e;
      });
      // Of places below 2^32 the least is the greatest of what they lack.
      double lacks = 4294967295.0 - (double)first;
      lacks = team_max<WARP>(lacks, wide, 0.0);
      first = lacks == 0.0 ? 0u : (u32)(4294967295.0 - lacks);
      row.again([&](u32 i, const Pack<Element, V>&) {
        Pack<Element, V> result;
#pragma unroll
        for (int e = 0; e < V; e++) result.at[e] = N::narrow((Lane)(i * V + e == first ? 1 : 0));
        store_pack(to + (u64)i * V, result);
      });
      continue;
    }
    double sum = 0.0;
    row.again([&](u32, const Pack<Element, V>& pack) {
      Lane powers[V];
#pragma unroll
      for (int e = 0; e < V; e++) powers[e] = power(N::lane(pack.at[e]) - greatest);
      sum += (double)pack_sum<V>(powers);
    });
    sum = team_sum<WARP>(sum, wide);
    if (kind == LOG) {
      const Lane shift = (Lane)log(sum);
      row.again([&](u32 i, const Pack<Element, V>& pack) {
        Pack<Element, V> result;
#pragma unroll
        for (int e = 0; e < V; e++) result.at[e] = N::narrow(N::lane(pack.at[e]) - greatest - shift);
        store_pack(to + (u64)i * V, result);
      });
    } else {
      const Lane factor = (Lane)(1.0 / sum);
      row.again([&](u32 i, const Pack<Element, V>& pack) {
        Pack<Element, V> result;
#pragma unroll
        for (int e = 0; e < V; e++) result.at[e] = N::narrow(power(N::lane(pack.at[e]) - greatest) * factor);
        store_pack(to + (u64)i * V, result);
      });
    }
  }
}

// Y (dY - sum of dY Y), or for logarithms dY - e^Y sum of dY; dx may be dy or y.
template <int V, bool WARP>
__device__ __forceinline__ void softmax_grad_rows(const Element* dy, const Element* y, Element* dx, u64 rows, u32 size, u32 kind) {
  __shared__ double wide[32];
  const u32 threads = WARP ? 32u : blockDim.x, thread = WARP ? threadIdx.x & 31u : threadIdx.x;
  const u32 teams = blockDim.x / threads;
  for (u64 number = (u64)blockIdx.x * teams + (WARP ? threadIdx.x >> 5 : 0u); number < rows; number += (u64)gridDim.x * teams) {
    Row<V, 2> of_dy(dy + number * size, size / V, thread, threads);
    Row<V, 2> of_y(y + number * size, size / V, thread, threads);
    Element* to = dx + number * size;
    double total = 0.0;
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const u32 i = thread + n * threads;
      if (i < of_dy.packs) {
        of_dy.held[n] = load_pack<V>(of_dy.from + (u64)i * V);
        of_y.held[n] = load_pack<V>(of_y.from + (u64)i * V);
      } else {
        of_dy.held[n] = of_y.held[n] = Pack<Element, V>();
      }
    }
    auto add = [&](const Pack<Element, V>& a, const Pack<Element, V>& b) {
      Lane terms[V];
#pragma unroll
      for (int e = 0; e < V; e++) terms[e] = kind == LOG ? N::lane(a.at[e]) : N::lane(a.at[e]) * N::lane(b.at[e]);
      total += (double)pack_sum<V>(terms);
    };
#pragma unroll
    for (int n = 0; n < 2; n++)
      if (thread + n * threads < of_dy.packs) add(of_dy.held[n], of_y.held[n]);
    for (u32 i = thread + 2u * threads; i < of_dy.packs; i += threads)
      add(load_pack<V>(of_dy.from + (u64)i * V), load_pack<V>(of_y.from + (u64)i * V));
    const Lane sum = (Lane)team_sum<WARP>(total, wide);
    auto write = [&](u32 i, const Pack<Element, V>& a, const Pack<Element, V>& b) {
      Pack<Element, V> result;
#pragma unroll
      for (int e = 0; e < V; e++) {
        const Lane of = N::lane(a.at[e]), with = N::lane(b.at[e]);
        result.at[e] = N::narrow(kind == LOG ? of - power(with) * sum : (of - sum) * with);
      }
      store_pack(to + (u64)i * V, result);
    };
#pragma unroll
    for (int n = 0; n < 2; n++)
      if (thread + n * threads < of_dy.packs) write(thread + n * threads, of_dy.held[n], of_y.held[n]);
    for (u32 i = thread + 2u * threads; i < of_dy.packs; i += threads)
      write(i, load_pack<V>(of_dy.from + (u64)i * V), load_pack<V>(of_y.from + (u64)i * V));
  }
}

#define SOFTMAX_KERNELS(V)                                                                                            \
  extern "C" __global__ void __launch_bounds__(512, 1) softmax_warps_##V(const Element* x, Element* y, u64 rows, u32 size, \
                                                                      u32 kind) {                                     \
    softmax_rows<V, true>(x, y, rows, size, kind);                                                                    \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(512, 1) softmax_blocks_##V(const Element* x, Element* y, u64 rows, u32 size, \
                                                                       u32 kind) {                                    \
    softmax_rows<V, false>(x, y, rows, size, kind);                                                                   \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(512, 1) softmax_grad_warps_##V(const Element* dy, const Element* y,       \
                                                                           Element* dx, u64 rows, u32 size, u32 kind) { \
    softmax_grad_rows<V, true>(dy, y, dx, rows, size, kind);                                                          \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(512, 1) softmax_grad_blocks_##V(const Element* dy, const Element* y,      \
                                                                            Element* dx, u64 rows, u32 size, u32 kind) { \
    softmax_grad_rows<V, false>(dy, y, dx, rows, size, kind);                                                         \
  }
#if ELEMENT_BYTES == 2
SOFTMAX_KERNELS(8)
#elif ELEMENT_BYTES == 4
SOFTMAX_KERNELS(4)
#else
SOFTMAX_KERNELS(2)
#endif
SOFTMAX_KERNELS(1)

// Along the middle axis of [outer, size, inner], a thread for each column; y may be x.
extern "C" __global__ void softmax_columns(const Element* x, Element* y, u64 columns, u64 size, Divisor inner, u32 kind) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 column = (u64)blockIdx.x * blockDim.x + threadIdx.x; column < columns; column += stride) {
    const u64 outer = quotient(column, inner), step = inner.divisor;
    const u64 start = outer * size * step + (column - outer * step);
    Lane greatest = lowest(Lane());
    u64 first = 0;
    for (u64 i = 0; i < size; i++) {
      const Lane element = N::lane(x[start + i * step]);
      const Lane more = max_or_nan(greatest, element);
      if (more != greatest) first = i;
      greatest = more;
    }
    double sum = 0.0;
    if (kind != HARD)
      for (u64 i = 0; i < size; i++) sum += (double)power(N::lane(x[start + i * step]) - greatest);
    const Lane last = kind == PLAIN ? (Lane)(1.0 / sum) : (Lane)log(sum);
    for (u64 i = 0; i < size; i++) {
      const Lane element = N::lane(x[start + i * step]);
      Lane result;
      if (kind == PLAIN) result = power(element - greatest) * last;
      else if (kind == LOG) result = element - greatest - last;
      else result = (Lane)(i == first ? 1 : 0);
      y[start + i * step] = N::narrow(result);
    }
  }
}

extern "C" __global__ void softmax_grad_columns(const Element* dy, const Element* y, Element* dx, u64 columns, u64 size,
                                                Divisor inner, u32 kind) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 column = (u64)blockIdx.x * blockDim.x + threadIdx.x; column < columns; column += stride) {
    const u64 outer = quotient(column, inner), step = inner.divisor;
    const u64 start = outer * size * step + (column - outer * step);
    double total = 0.0;
    for (u64 i = 0; i < size; i++) {
      const Lane of = N::lane(dy[start + i * step]);
      total += (double)(kind == LOG ? of : of * N::lane(y[start + i * step]));
    }
    const Lane sum = (Lane)total;
    for (u64 i = 0; i < size; i++) {
      const Lane of = N::lane(dy[start + i * step]), with = N::lane(y[start + i * step]);
      dx[start + i * step] = N::narrow(kind == LOG ? of - power(with) * sum : (of - sum) * with);
    }
  }
}
