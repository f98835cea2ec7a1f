// Pooling over planes, with its gradients.
#include "common.cuh"

struct Geometry {
  i32 size[3], kernel[3], stride[3], dilation[3], pad[3], pad_after[3], out[3];
};

// The taps of a window that lie in the input on one axis: where the first of them lies, how many there are,
// and how many with those in the padding, where a window that ends behind it is cut off.
struct Span { i32 start, count, padded; };

__device__ __forceinline__ i32 taps_up_to(i32 start, i32 end, i32 kernel, i32 dilation) {
  const i32 reach = max(end - start, 0);
  return min(dilation == 1 ? reach : (reach + dilation - 1) / dilation, kernel);
}

__device__ __forceinline__ Span span(const Geometry& g, int axis, i32 out) {
  const i32 start = out * g.stride[axis], behind = g.pad[axis] + g.size[axis];
  const i32 first = taps_up_to(start, g.pad[axis], g.kernel[axis], g.dilation[axis]);
  const i32 end = taps_up_to(start, behind, g.kernel[axis], g.dilation[axis]);
  Span span;
  span.start = start + first * g.dilation[axis] - g.pad[axis];
  span.count = end - first;
  span.padded = taps_up_to(start, behind + g.pad_after[axis], g.kernel[axis], g.dilation[axis]);
  return span;
}

struct Window { Span d, h, w; };

__device__ __forceinline__ Window window(const Geometry& g, u32 position, const Divider& plane, const Divider& row) {
  const u32 d = divide(position, plane), rest = position - d * plane.size, h = divide(rest, row);
  Window window;
  window.d = span(g, 0, (i32)d);
  window.h = span(g, 1, (i32)h);
  window.w = span(g, 2, (i32)(rest - h * row.size));
  return window;
}

__device__ __forceinline__ double taps_of(const Window& window, u32 padded) {
  return padded ? (double)window.d.padded * (double)window.h.padded * (double)window.w.padded
                : (double)window.d.count * (double)window.h.count * (double)window.w.count;
}

// What is computed with: numbers as float or double, and the type of sums.
template <typename T> struct Element {
  typedef float Type; typedef double Sum;
  static __device__ __forceinline__ float open(T x) { return Number<T>::lane(x); }
  static __device__ __forceinline__ T close(double x) { return Number<T>::narrow((float)x); }
  static __device__ __forceinline__ T least() { return Number<T>::narrow(-INFINITY_F); }
};
template <> struct Element<double> {
  typedef double Type; typedef double Sum;
  static __device__ __forceinline__ double open(double x) { return x; }
  static __device__ __forceinline__ double close(double x) { return x; }
  static __device__ __forceinline__ double least() { return -INFINITY_D; }
};
template <> struct Element<u8> {
  typedef float Type; typedef double Sum;
  static __device__ __forceinline__ float open(u8 x) { return (float)x; }
  // Towards zero, at the ends of the range where it is beyond, and 0 for NaN.
  static __device__ __forceinline__ u8 close(double x) { return x != x ? 0 : (u8)__double2int_rz(fmin(fmax(x, 0.0), 255.0)); }
  static __device__ __forceinline__ u8 least() { return 0; }
};
template <> struct Element<i8> {
  typedef float Type; typedef double Sum;
  static __device__ __forceinline__ float open(i8 x) { return (float)x; }
  static __device__ __forceinline__ i8 close(double x) {
    return x != x ? 0 : (i8)__double2int_rz(fmin(fmax(x, -128.0), 127.0));
  }
  static __device__ __forceinline__ i8 least() { return -128; }
};

#define MAXIMUM 0u
#define AVERAGE 1u
#define NORM 2u

// `Pool` of the backend.
struct Pool {
  Geometry g;
  // Output positions of a plane, of its last two axes and of its last one.
  Divider positions, out_plane, out_row;
  u32 plane;
  // What becomes of a window; whether padding counts, or indices count the first axis fastest.
  u32 reduction, flag;
  float p;
};

// A number and where it lies in its plane, -1 for none.
template <typename N> struct Best { N number; i32 place; };

// Whether b comes in the place of a: the greater one, the first of equal ones, and a NaN before all.
template <typename N> __device__ __forceinline__ bool replaces(const Best<N>& b, const Best<N>& a) {
  if (b.place < 0) return false;
  if (a.place < 0) return true;
  const bool b_is_nan = b.number != b.number, a_is_nan = a.number != a.number;
  if (a_is_nan || b_is_nan) return b_is_nan && (!a_is_nan || b.place < a.place);
  return b.number > a.number || (b.number == a.number && b.place < a.place);
}

__device__ __forceinline__ double magnitude(double x, float p) { return p == 2.f ? x * x : pow(fabs(x), (double)p); }

// `LANES` threads per output: one for small windows, a warp for large ones.
template <typename T, u32 LANES>
__device__ __forceinline__ void pool(const T* x, T* y, i64* places, const Pool& pool, u32 count) {
  typedef typename Element<T>::Type N;
  const Geometry& g = pool.g;
  const u32 lane = LANES == 1u ? 0u : threadIdx.x & 31u;
  const u32 stride = gridDim.x * (blockDim.x / LANES);
  for (u32 i = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES; i < count; i += stride) {
    const u32 plane = divide(i, pool.positions);
    const Window at = window(g, i - plane * pool.positions.size, pool.out_plane, pool.out_row);
    const T* from = x + (u64)plane * pool.plane;
    Best<N> best = {(N)0, -1};
    double sum = 0.0;
    const i32 lines = at.h.count * at.d.count;
    // Taps of the last axis side by side; where there are fewer than lanes, some lines at once.
    const i32 taps = lines * at.w.count;
    for (i32 number = (i32)lane; number < taps; number += LANES) {
      const i32 line = number / at.w.count, w = number - line * at.w.count;
      const i32 d = line / at.h.count, h = line - d * at.h.count;
      const i32 place = ((at.d.start + d * g.dilation[0]) * g.size[1] + at.h.start + h * g.dilation[1]) * g.size[2] +
                        at.w.start + w * g.dilation[2];
      const Best<N> one = {Element<T>::open(from[place]), place};
      if (pool.reduction == MAXIMUM) {
        if (replaces(one, best)) best = one;
      } else if (pool.reduction == AVERAGE) {
        sum += (double)one.number;
      } else {
        sum += magnitude((double)one.number, pool.p);
      }
    }
    if (LANES > 1u) {
      if (pool.reduction == MAXIMUM) {
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes >>= 1) {
          Best<N> other;
          other.number = __shfl_xor_sync(FULL_WARP, best.number, lanes);
          other.place = __shfl_xor_sync(FULL_WARP, best.place, lanes);
          if (replaces(other, best)) best = other;
        }
      } else {
        sum = warp_sum(sum);
      }
    }
    if (lane != 0u) continue;
    if (pool.reduction == MAXIMUM) {
      y[i] = best.place < 0 ? Element<T>::least() : from[best.place];
      if (places) {
        i64 place = best.place;
        if (place >= 0) {
          if (pool.flag) {
            const i32 row = best.place / g.size[2], w = best.place - row * g.size[2];
            const i32 d = row / g.size[1], h = row - d * g.size[1];
            place = d + ((i64)h + (i64)w * g.size[1]) * g.size[0];
          }
          place += (i64)plane * pool.plane;
        }
        places[i] = place;
      }
    } else if (pool.reduction == AVERAGE) {
      y[i] = Element<T>::close(sum / taps_of(at, pool.flag));
    } else {
      y[i] = Element<T>::close(pool.p == 2.f ? sqrt(sum) : pow(sum, 1.0 / (double)pool.p));
    }
  }
}

#define VELORA_POOL(SUFFIX, T)                                                                                     \
  extern "C" __global__ void pool_##SUFFIX(const T* x, T* y, i64* places, Pool by, u32 count) {                      \
    pool<T, 1u>(x, y, places, by, count);                                                                          \
  }                                                                                                                \
  extern "C" __global__ void pool_by_warps_##SUFFIX(const T* x, T* y, i64* places, Pool by, u32 count) {             \
    pool<T, 32u>(x, y, places, by, count);                                                                         \
  }
VELORA_FLOATS(VELORA_POOL)
VELORA_POOL(u8, u8)
VELORA_POOL(i8, i8)

// Every dY is added where its maximum lay. A block of one warp has a part of a plane of dX: it takes the
// positions 32 at a time, in their order, and of those that fall on one element the first lane adds all. The
// barrier of a block of one warp orders its reads behind its writes.
template <typename T>
__device__ __forceinline__ void max_gradient(const T* dy, const i64* places, T* dx, u32 planes, u32 size, u32 positions,
                                             u32 parts, u32 bits, Report* failure, u32 check) {
  const u32 lane = threadIdx.x;
  const u32 per_part = (size + parts - 1u) / parts;
  for (u64 task = blockIdx.x; task < (u64)planes * parts; task += gridDim.x) {
    const u32 plane = (u32)(task / parts);
    const u32 first = min((u32)(task - (u64)plane * parts) * per_part, size);
    const u32 end = min(first + per_part, size);
    const i64 base = (i64)plane * size;
    for (u32 i = first + lane; i < end; i += 32u) dx[base + i] = (T)0;
    __syncthreads();
    for (u32 start = 0; start < positions; start += 32u) {
      const u32 position = start + lane;
      u32 place = size;
      T value = (T)0;
      if (position < positions) {
        const u64 from = (u64)plane * positions + position;
        const i64 given = places[from], within = given - base;
        // A window with nothing but padding has -1.
        if (within >= 0 && within < (i64)size) {
          if ((u32)within >= first && (u32)within < end) {
            place = (u32)within;
            value = dy[from];
          }
        } else if (given != -1) {
          report(failure, check, (i64)from, given);
        }
      }
      if (__ballot_sync(FULL_WARP, place != size) != 0u) {
        const u32 peers = warp_peers(place, bits);
        const bool leads = place != size && (peers & ((1u << lane) - 1u)) == 0u;
        T sum = leads ? dx[base + place] : (T)0;
        // All lanes take part in handing values over: as many rounds as the largest group has lanes.
        u32 left = peers;
        while (__ballot_sync(FULL_WARP, leads && left != 0u) != 0u) {
          const u32 next = left != 0u ? (u32)__ffs((int)left) - 1u : lane;
          const T other = __shfl_sync(FULL_WARP, value, (int)next);
          if (leads && left != 0u) sum += other;
          left &= left - 1u;
        }
        if (leads) dx[base + place] = sum;
        __syncthreads();
      }
    }
    __syncthreads();
  }
}

// Every dY is shared out equally among its window: an input adds up the shares of the windows over it, in
// their order.
template <typename T>
__device__ __forceinline__ void average_gradient(const T* dy, T* dx, const Pool& pool, const Divider& plane_size,
                                                 const Divider& in_plane, const Divider& in_row, u32 count) {
  const Geometry& g = pool.g;
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 plane = divide(i, plane_size), at = i - plane * plane_size.size;
    const u32 d = divide(at, in_plane), rest = at - d * in_plane.size, h = divide(rest, in_row);
    const i32 place[3] = {(i32)d, (i32)h, (i32)(rest - h * in_row.size)};
    const T* from = dy + (u64)plane * pool.positions.size;
    T sum = (T)0;
    i32 out[3];
    // Later taps are those of earlier windows.
    for (i32 kd = g.kernel[0] - 1; kd >= 0; kd--) {
      const i32 reach_d = place[0] + g.pad[0] - kd * g.dilation[0];
      out[0] = reach_d / g.stride[0];
      if (reach_d < 0 || out[0] * g.stride[0] != reach_d || out[0] >= g.out[0]) continue;
      const Span over_d = span(g, 0, out[0]);
      for (i32 kh = g.kernel[1] - 1; kh >= 0; kh--) {
        const i32 reach_h = place[1] + g.pad[1] - kh * g.dilation[1];
        out[1] = reach_h / g.stride[1];
        if (reach_h < 0 || out[1] * g.stride[1] != reach_h || out[1] >= g.out[1]) continue;
        const Span over_h = span(g, 1, out[1]);
        for (i32 kw = g.kernel[2] - 1; kw >= 0; kw--) {
          const i32 reach_w = place[2] + g.pad[2] - kw * g.dilation[2];
          out[2] = reach_w / g.stride[2];
          if (reach_w < 0 || out[2] * g.stride[2] != reach_w || out[2] >= g.out[2]) continue;
          const Window window = {over_d, over_h, span(g, 2, out[2])};
          const u32 position = (u32)((out[0] * g.out[1] + out[1]) * g.out[2] + out[2]);
          sum += (T)((double)from[position] / taps_of(window, pool.flag));
        }
      }
    }
    dx[i] = sum;
  }
}

#define VELORA_POOL_GRADIENT(SUFFIX, T)                                                                               \
  extern "C" __global__ void __launch_bounds__(32) max_gradient_##SUFFIX(                                              \
      const T* dy, const i64* places, T* dx, u32 planes, u32 size, u32 positions, u32 parts, u32 bits,                \
      Report* failure, u32 check) {                                                                                   \
    max_gradient<T>(dy, places, dx, planes, size, positions, parts, bits, failure, check);                            \
  }                                                                                                                   \
  extern "C" __global__ void average_gradient_##SUFFIX(const T* dy, T* dx, Pool by, Divider plane, Divider in_plane,    \
                                                       Divider in_row, u32 count) {                                   \
    average_gradient<T>(dy, dx, by, plane, in_plane, in_row, count);                                                  \
  }
VELORA_POOL_GRADIENT(f32, float)
VELORA_POOL_GRADIENT(f64, double)
