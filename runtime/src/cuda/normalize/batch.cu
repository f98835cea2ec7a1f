// Batch normalisation and its gradient, of channels in [batch, channels, spatial]. `Element` is defined
// where this is included.
#include "common.cuh"
#include "columns.cuh"
#include "rows.cuh"

typedef Number<Element> N;
typedef N::Lane Lane;

struct Planes {
  u64 batch, channels, spatial, parts;
  Divisor places;  // of a plane
};

// Two sums over a part of a channel: a block takes elements of its planes. `f(at, a, b)` adds to both.
template <typename F>
__device__ __forceinline__ void channel_sums(const Planes& planes, double* first, double* second, F f) {
  __shared__ double shared[32];
  const u64 count = planes.batch * planes.spatial, share = (count + planes.parts - 1) / planes.parts;
  for (u64 block = blockIdx.x; block < planes.channels * planes.parts; block += gridDim.x) {
    const u64 part = block / planes.channels, channel = block - part * planes.channels;
    const u64 begin = part * share, end = begin + share < count ? begin + share : count;
    double a = 0.0, b = 0.0;
#pragma unroll 4
    for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
      const u64 plane = quotient(i, planes.places), place = i - plane * planes.spatial;
      f((plane * planes.channels + channel) * planes.spatial + place, channel, a, b);
    }
    a = block_sum(a, shared);
    b = block_sum(b, shared);
    if (threadIdx.x == 0u) {
      first[block] = a;
      if (second) second[block] = b;
    }
  }
}

__device__ __forceinline__ double total(const double* parts, const Planes& planes, u64 channel) {
  double sum = 0.0;
  for (u64 part = 0; part < planes.parts; part++) sum += parts[part * planes.channels + channel];
  return sum;
}

// The sums of channels, in parts [parts, channels].
extern "C" __global__ void batch_sums(const Element* __restrict__ x, double* sums, Planes planes) {
  channel_sums(planes, sums, 0, [&](u64 at, u64, double& a, double&) { a += (double)N::lane(x[at]); });
}

// Means from them, [channels].
extern "C" __global__ void batch_means(const double* sums, double* means, Planes planes) {
  for (u64 c = (u64)blockIdx.x * blockDim.x + threadIdx.x; c < planes.channels; c += (u64)gridDim.x * blockDim.x)
    means[c] = total(sums, planes, c) / (double)(planes.batch * planes.spatial);
}

// The sums of squares of what differs from the mean, in parts.
extern "C" __global__ void batch_squares(const Element* __restrict__ x, const double* __restrict__ means, double* squares,
                                         Planes planes) {
  channel_sums(planes, squares, 0, [&](u64 at, u64 channel, double& a, double&) {
    const Lane apart = N::lane(x[at]) - (Lane)means[channel];
    a += (double)(apart * apart);
  });
}

__device__ __forceinline__ void set(Element* to, u64 at, double x) {
  if (to) to[at] = N::narrow((Lane)x);
}

// What each channel is normalised with, [2, channels], and the statistics that somebody wants. Without
// training those of the inputs are taken.
extern "C" __global__ void batch_statistics(const Element* scale, const Element* mean, const Element* variance,
                                            const double* means, const double* squares, double* numbers,
                                            Element* running_mean, Element* running_variance, Element* saved_mean,
                                            Element* saved_inverse, Planes planes, double epsilon, double keep,
                                            u32 training, u32 unbiased) {
  const double count = (double)(planes.batch * planes.spatial);
  for (u64 c = (u64)blockIdx.x * blockDim.x + threadIdx.x; c < planes.channels; c += (u64)gridDim.x * blockDim.x) {
    const double old_mean = (double)N::lane(mean[c]), old_variance = (double)N::lane(variance[c]);
    const double average = training ? means[c] : old_mean;
    const double spread = training ? total(squares, planes, c) / count : old_variance;
    const double corrected = unbiased && count > 1.0 ? spread * count / (count - 1.0) : spread;
    const double root = sqrt(spread + epsilon);
    set(running_mean, c, old_mean * keep + average * (1.0 - keep));
    set(running_variance, c, old_variance * keep + corrected * (1.0 - keep));
    set(saved_mean, c, average);
    set(saved_inverse, c, 1.0 / root);
    numbers[c] = average;
    numbers[planes.channels + c] = (double)N::lane(scale[c]) / root;
  }
}

// Y = (X - mean) factor + bias.
template <int V>
__device__ __forceinline__ void batch_apply(const Element* __restrict__ x, const double* __restrict__ numbers,
                                            const Element* __restrict__ bias, Element* __restrict__ y, u64 packs,
                                            const Divisor& of_plane, const Divisor& channels) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
    const u64 plane = quotient(i, of_plane), channel = plane - quotient(plane, channels) * channels.divisor;
    const Lane shift = (Lane)numbers[channel], factor = (Lane)numbers[channels.divisor + channel];
    const Lane added = N::lane(bias[channel]);
    const Pack<Element, V> pack = load_pack<V>(x + i * V);
    Pack<Element, V> result;
#pragma unroll
    for (int e = 0; e < V; e++) result.at[e] = N::narrow((N::lane(pack.at[e]) - shift) * factor + added);
    store_pack(y + i * V, result);
  }
}

// The sums of dY n and of dY, with n the normalised input, in parts.
extern "C" __global__ void batch_grad_sums(const Element* __restrict__ dy, const Element* __restrict__ x,
                                           const Element* __restrict__ mean, const Element* __restrict__ inverse,
                                           double* of_scale, double* of_bias, Planes planes) {
  channel_sums(planes, of_scale, of_bias, [&](u64 at, u64 channel, double& a, double& b) {
    const Lane d = N::lane(dy[at]);
    a += (double)(d * ((N::lane(x[at]) - N::lane(mean[channel])) * N::lane(inverse[channel])));
    b += (double)d;
  });
}

// Their totals: dScale and dBias, and over the number of elements, [2, channels].
extern "C" __global__ void batch_grad_totals(const double* of_scale, const double* of_bias, double* numbers,
                                             Element* dscale, Element* dbias, Planes planes) {
  const double count = (double)(planes.batch * planes.spatial);
  for (u64 c = (u64)blockIdx.x * blockDim.x + threadIdx.x; c < planes.channels; c += (u64)gridDim.x * blockDim.x) {
    const double along = total(of_scale, planes, c), across = total(of_bias, planes, c);
    set(dscale, c, along);
    set(dbias, c, across);
    numbers[c] = along / count;
    numbers[planes.channels + c] = across / count;
  }
}

// dX = scale inverse (dY - mean of dY - n mean of dY n).
template <int V>
__device__ __forceinline__ void batch_grad_apply(const Element* __restrict__ dy, const Element* __restrict__ x,
                                                 const Element* __restrict__ scale, const Element* __restrict__ mean,
                                                 const Element* __restrict__ inverse, const double* __restrict__ numbers,
                                                 Element* __restrict__ dx, u64 packs, const Divisor& of_plane,
                                                 const Divisor& channels) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
    const u64 plane = quotient(i, of_plane), channel = plane - quotient(plane, channels) * channels.divisor;
    const Lane along = (Lane)numbers[channel], across = (Lane)numbers[channels.divisor + channel];
    const Lane shift = N::lane(mean[channel]), deviation = N::lane(inverse[channel]);
    const Lane factor = (Lane)((double)N::lane(scale[channel]) * (double)deviation);
    const Pack<Element, V> d = load_pack<V>(dy + i * V), pack = load_pack<V>(x + i * V);
    Pack<Element, V> result;
#pragma unroll
    for (int e = 0; e < V; e++) {
      const Lane normal = (N::lane(pack.at[e]) - shift) * deviation;
      result.at[e] = N::narrow((N::lane(d.at[e]) - across - normal * along) * factor);
    }
    store_pack(dx + i * V, result);
  }
}

#define BATCH_KERNELS(V)                                                                                            \
  extern "C" __global__ void batch_apply_##V(const Element* x, const double* numbers, const Element* bias,          \
                                             Element* y, u64 packs, Divisor of_plane, Divisor channels) {           \
    batch_apply<V>(x, numbers, bias, y, packs, of_plane, channels);                                                 \
  }                                                                                                                 \
  extern "C" __global__ void batch_grad_apply_##V(const Element* dy, const Element* x, const Element* scale,        \
                                                  const Element* mean, const Element* inverse, const double* numbers, \
                                                  Element* dx, u64 packs, Divisor of_plane, Divisor channels) {     \
    batch_grad_apply<V>(dy, x, scale, mean, inverse, numbers, dx, packs, of_plane, channels);                       \
  }
#if ELEMENT_BYTES == 2
BATCH_KERNELS(8)
#elif ELEMENT_BYTES == 4
BATCH_KERNELS(4)
#else
BATCH_KERNELS(2)
#endif
BATCH_KERNELS(1)

// The sums of elements without places, [batch, channels], by tiles of channels; what is added as above.
#define SUM 0u
#define SQUARE 1u
#define ALONG 2u
extern "C" __global__ void batch_columns(const Element* __restrict__ x, const Element* __restrict__ dy,
                                         const Element* __restrict__ mean, const Element* __restrict__ inverse,
                                         const double* __restrict__ means, double* sums, Columns cut, u32 what) {
  __shared__ double shared[256];
  double totals[1];
  u64 column;
  const u64 part = blockIdx.x / cut.tiles;
  const u32 tile = blockIdx.x - (u32)part * cut.tiles;
  const bool writes = fold_columns<Sum, 1, Lane>(cut, part, tile, shared, totals, column, [&](u64 row, u64 at, Lane(&y)[1]) {
    const Lane of = N::lane(x[row * cut.width + at]);
    if (what == SQUARE) {
      const Lane apart = of - (Lane)means[at];
      y[0] = apart * apart;
    } else if (what == ALONG) {
      y[0] = N::lane(dy[row * cut.width + at]) * ((of - N::lane(mean[at])) * N::lane(inverse[at]));
    } else {
      y[0] = of;
    }
  });
  if (writes) sums[part * cut.width + column] = totals[0];
}
