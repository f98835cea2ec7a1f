// Convolutions as products over columns, depthwise ones directly, and sums of channels.
#include "common.cuh"

// How a window slides: `Geometry` of the runtime, in 32 bits. Tap k of output o lies at
// o * stride + k * dilation - pad of the input.
struct Geometry {
  i32 size[3], kernel[3], stride[3], dilation[3], pad[3], pad_after[3], out[3];
};

// What positions are split by.
struct Splits {
  // Output positions of a plane, of its last two axes and of its last one; the same of the input; taps of a
  // window, of its last two axes and of its last one.
  Divider positions, out_plane, out_row;
  Divider plane, in_plane, in_row;
  Divider taps, tap_plane, tap_row;
};

struct Place { i32 d, h, w; };

__device__ __forceinline__ Place split(u32 number, const Divider& plane, const Divider& row) {
  const u32 d = divide(number, plane), rest = number - d * plane.size, h = divide(rest, row);
  Place place = {(i32)d, (i32)h, (i32)(rest - h * row.size)};
  return place;
}

// Where a tap of an output lies in the input; false where it lies in the padding.
__device__ __forceinline__ bool tap_at(const Geometry& g, const Place& out, const Place& tap, u32& at) {
  const i32 d = out.d * g.stride[0] + tap.d * g.dilation[0] - g.pad[0];
  const i32 h = out.h * g.stride[1] + tap.h * g.dilation[1] - g.pad[1];
  const i32 w = out.w * g.stride[2] + tap.w * g.dilation[2] - g.pad[2];
  at = (u32)((d * g.size[1] + h) * g.size[2] + w);
  return (u32)d < (u32)g.size[0] && (u32)h < (u32)g.size[1] && (u32)w < (u32)g.size[2];
}

// The output whose tap lies at an input on one axis; false where there is none.
__device__ __forceinline__ bool output_of(const Geometry& g, int axis, i32 at, i32 tap, i32& out) {
  const i32 reach = at + g.pad[axis] - tap * g.dilation[axis];
  if (reach < 0) return false;
  const i32 stride = g.stride[axis];
  out = stride == 1 ? reach : reach / stride;
  return out * stride == reach && out < g.out[axis];
}

// The columns of some planes: a row for each plane and tap, a column for each output position.
template <typename T>
__device__ __forceinline__ void columns(const T* x, T* to, const Geometry& g, const Splits& by, u32 count) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 row = divide(i, by.positions), position = i - row * by.positions.size;
    const u32 plane = divide(row, by.taps), tap = row - plane * by.taps.size;
    u32 at;
    const bool inside = tap_at(g, split(position, by.out_plane, by.out_row), split(tap, by.tap_plane, by.tap_row), at);
    to[i] = inside ? x[(u64)plane * by.plane.size + at] : (T)0;
  }
}

// The transpose: every input adds up what its taps have, in their order, on top of its channel's bias.
template <typename T>
__device__ __forceinline__ void collect(const T* columns, const T* bias, T* dx, const Geometry& g, const Splits& by,
                                        const Divider& channels, u32 first_plane, u32 count) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 plane = divide(i, by.plane), at = i - plane * by.plane.size;
    const Place place = split(at, by.in_plane, by.in_row);
    T sum = (T)0;
    if (bias) {
      const u32 number = first_plane + plane;
      sum = bias[number - divide(number, channels) * channels.size];
    }
    const T* from = columns + (u64)plane * by.taps.size * by.positions.size;
    for (i32 d = 0; d < g.kernel[0]; d++) {
      i32 od, oh, ow;
      if (!output_of(g, 0, place.d, d, od)) continue;
      for (i32 h = 0; h < g.kernel[1]; h++) {
        if (!output_of(g, 1, place.h, h, oh)) continue;
        for (i32 w = 0; w < g.kernel[2]; w++) {
          if (!output_of(g, 2, place.w, w, ow)) continue;
          const u32 tap = (u32)((d * g.kernel[1] + h) * g.kernel[2] + w);
          const u32 position = (u32)((od * g.out[1] + oh) * g.out[2] + ow);
          sum += from[(u64)tap * by.positions.size + position];
        }
      }
    }
    dx[i] = sum;
  }
}

// Each plane is the bias of its channel, or 0.
template <typename T>
__device__ __forceinline__ void spread(const T* bias, T* y, const Divider& positions, const Divider& channels, u32 count) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 plane = divide(i, positions);
    y[i] = bias[plane - divide(plane, channels) * channels.size];
  }
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// The channels of X and of Y of a convolution whose groups have one channel each: `Depth` of the backend.
struct Depth {
  u32 groups, filters;
  // Channels of Y: groups * filters.
  Divider outputs, per_group, inputs;
};

template <typename T>
__device__ __forceinline__ void depthwise(const T* x, const T* weights, const T* bias, T* y, const Geometry& g,
                                          const Splits& by, const Depth& depth, u32 count) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 plane = divide(i, by.positions), position = i - plane * by.positions.size;
    const u32 image = divide(plane, depth.outputs), filter = plane - image * depth.outputs.size;
    const T* from = x + (u64)(image * depth.groups + divide(filter, depth.per_group)) * by.plane.size;
    const T* taps = weights + (u64)filter * by.taps.size;
    const Place out = split(position, by.out_plane, by.out_row);
    T sum = bias ? bias[filter] : (T)0;
    u32 tap = 0;
    Place k;
    for (k.d = 0; k.d < g.kernel[0]; k.d++) {
      for (k.h = 0; k.h < g.kernel[1]; k.h++) {
        for (k.w = 0; k.w < g.kernel[2]; k.w++, tap++) {
          u32 at;
          if (tap_at(g, out, k, at)) sum = multiply_add(taps[tap], from[at], sum);
        }
      }
    }
    y[i] = sum;
  }
}

template <typename T>
__device__ __forceinline__ void depthwise_input(const T* dy, const T* weights, const T* bias, T* dx, const Geometry& g,
                                                const Splits& by, const Depth& depth, u32 count) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 plane = divide(i, by.plane), at = i - plane * by.plane.size;
    const u32 image = divide(plane, depth.inputs), group = plane - image * depth.inputs.size;
    const Place place = split(at, by.in_plane, by.in_row);
    T sum = bias ? bias[group] : (T)0;
    for (i32 d = 0; d < g.kernel[0]; d++) {
      i32 od, oh, ow;
      if (!output_of(g, 0, place.d, d, od)) continue;
      for (i32 h = 0; h < g.kernel[1]; h++) {
        if (!output_of(g, 1, place.h, h, oh)) continue;
        for (i32 w = 0; w < g.kernel[2]; w++) {
          if (!output_of(g, 2, place.w, w, ow)) continue;
          const u32 tap = (u32)((d * g.kernel[1] + h) * g.kernel[2] + w);
          const u32 position = (u32)((od * g.out[1] + oh) * g.out[2] + ow);
          for (u32 f = 0; f < depth.filters; f++) {
            const u32 filter = group * depth.filters + f;
            const T product_of = dy[(u64)(image * depth.outputs.size + filter) * by.positions.size + position];
            sum = multiply_add(weights[(u64)filter * by.taps.size + tap], product_of, sum);
          }
        }
      }
    }
    dx[i] = sum;
  }
}

// A block for each tap of each filter: the sum over images and positions, each thread's in double precision.
template <typename T>
__device__ __forceinline__ void depthwise_weight(const T* dy, const T* x, T* dw, const Geometry& g, const Splits& by,
                                                 const Depth& depth, u32 images, u32 count) {
  __shared__ double sums[32];
  for (u32 number = blockIdx.x; number < count; number += gridDim.x) {
    const u32 filter = divide(number, by.taps), tap = number - filter * by.taps.size;
    const u32 group = divide(filter, depth.per_group);
    const Place k = split(tap, by.tap_plane, by.tap_row);
    double sum = 0.0;
    const u32 all = images * by.positions.size;
    for (u32 i = threadIdx.x; i < all; i += blockDim.x) {
      const u32 image = divide(i, by.positions), position = i - image * by.positions.size;
      u32 at;
      if (tap_at(g, split(position, by.out_plane, by.out_row), k, at)) {
        const T a = dy[(u64)(image * depth.outputs.size + filter) * by.positions.size + position];
        const T b = x[(u64)(image * depth.groups + group) * by.plane.size + at];
        sum += (double)a * (double)b;
      }
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0u) dw[number] = (T)sum;
  }
}

// Sums of channels of [batch, channels, positions], in parts: block (channel, part) adds up the elements of its
// part. One part is the result; of several, `partial_sums` gets [channels, parts].
template <typename T>
__device__ __forceinline__ void channel_sums(const T* dy, T* sums, double* partial_sums, u32 channels,
                                             const Divider& positions, u32 per_channel) {
  __shared__ double shared[32];
  const u32 channel = blockIdx.x, parts = gridDim.y;
  const u32 part = (per_channel + parts - 1u) / parts;
  const u32 first = blockIdx.y * part, end = min(first + part, per_channel);
  double sum = 0.0;
  for (u32 i = first + threadIdx.x; i < end; i += blockDim.x) {
    const u32 image = divide(i, positions), position = i - image * positions.size;
    sum += (double)dy[((u64)image * channels + channel) * positions.size + position];
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0u) {
    if (parts == 1u) sums[channel] = (T)sum;
    else partial_sums[channel * parts + blockIdx.y] = sum;
  }
}

template <typename T> __device__ __forceinline__ void add_parts(const double* partial_sums, T* sums, u32 channels, u32 parts) {
  const u32 channel = blockIdx.x * blockDim.x + threadIdx.x;
  if (channel >= channels) return;
  double sum = 0.0;
  for (u32 part = 0; part < parts; part++) sum += partial_sums[channel * parts + part];
  sums[channel] = (T)sum;
}

#define VELORA_CONVOLUTION(SUFFIX, T)                                                                                \
  extern "C" __global__ void columns_##SUFFIX(const T* x, T* to, Geometry g, Splits by, u32 count) {                   \
    columns<T>(x, to, g, by, count);                                                                                 \
  }                                                                                                                  \
  extern "C" __global__ void collect_##SUFFIX(const T* columns, const T* bias, T* dx, Geometry g, Splits by,           \
                                              Divider channels, u32 first_plane, u32 count) {                        \
    collect<T>(columns, bias, dx, g, by, channels, first_plane, count);                                              \
  }                                                                                                                  \
  extern "C" __global__ void spread_##SUFFIX(const T* bias, T* y, Divider positions, Divider channels, u32 count) {    \
    spread<T>(bias, y, positions, channels, count);                                                                  \
  }                                                                                                                  \
  extern "C" __global__ void depthwise_##SUFFIX(const T* x, const T* weights, const T* bias, T* y, Geometry g,         \
                                                Splits by, Depth depth, u32 count) {                                 \
    depthwise<T>(x, weights, bias, y, g, by, depth, count);                                                          \
  }                                                                                                                  \
  extern "C" __global__ void depthwise_input_##SUFFIX(const T* dy, const T* weights, const T* bias, T* dx, Geometry g, \
                                                      Splits by, Depth depth, u32 count) {                           \
    depthwise_input<T>(dy, weights, bias, dx, g, by, depth, count);                                                  \
  }                                                                                                                  \
  extern "C" __global__ void depthwise_weight_##SUFFIX(const T* dy, const T* x, T* dw, Geometry g, Splits by,          \
                                                       Depth depth, u32 images, u32 count) {                         \
    depthwise_weight<T>(dy, x, dw, g, by, depth, images, count);                                                     \
  }                                                                                                                  \
  extern "C" __global__ void channel_sums_##SUFFIX(const T* dy, T* sums, double* partial_sums, u32 channels,           \
                                                   Divider positions, u32 per_channel) {                             \
    channel_sums<T>(dy, sums, partial_sums, channels, positions, per_channel);                                       \
  }                                                                                                                  \
  extern "C" __global__ void add_parts_##SUFFIX(const double* partial_sums, T* sums, u32 channels, u32 parts) {        \
    add_parts<T>(partial_sums, sums, channels, parts);                                                               \
  }
VELORA_CONVOLUTION(f32, float)
VELORA_CONVOLUTION(f64, double)
