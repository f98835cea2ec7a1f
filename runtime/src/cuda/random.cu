// Random numbers by counter (Philox4x32-10), as `crate::random` has them, and what is done with them.
#include "common.cuh"

struct Words { u32 at[4]; };

__device__ __forceinline__ Words philox(u64 position, u64 stream, u64 seed) {
  u32 a = (u32)position, b = (u32)(position >> 32), c = (u32)stream, d = (u32)(stream >> 32);
  u32 key = (u32)seed, other = (u32)(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 low = a * 0xD2511F53u, low_up = __umulhi(a, 0xD2511F53u);
    const u32 high = c * 0xCD9E8D57u, high_up = __umulhi(c, 0xCD9E8D57u);
    a = high_up ^ b ^ key;
    b = high;
    c = low_up ^ d ^ other;
    d = low;
    key += 0x9E3779B9u;
    other += 0xBB67AE85u;
  }
  Words words = {{a, b, c, d}};
  return words;
}

// 53 bits as a number in [0, 1).
__device__ __forceinline__ double unit(u32 low, u32 high) {
  return (double)(((u64)high << 32 | low) >> 11) * (1.0 / 9007199254740992.0);
}

// As many numbers of a stream in a step as elements: their block in the upper half of the counter's position
// is the step.
__device__ __forceinline__ u64 position(const StepContext* context, u64 block) { return context->step << 32 | block; }

template <typename T> struct alignas(4 * sizeof(T)) Four { T at[4]; };

// The share of elements that is dropped and the mode: known, or read from operands of one element.
struct Settings {
  double ratio;
  const void* given_ratio;
  const u8* given_mode;
  u32 ratio_type;
  u32 training;
};

#define TYPE_FLOAT 1u
#define TYPE_HALF 10u
#define TYPE_DOUBLE 11u

// The ratio, 0 where nothing is dropped. One that is no share is reported.
__device__ __forceinline__ double ratio_of(const Settings& settings, Report* failure, u32 check) {
  double ratio = settings.ratio;
  if (settings.given_ratio) {
    if (settings.ratio_type == TYPE_FLOAT) ratio = *(const float*)settings.given_ratio;
    else if (settings.ratio_type == TYPE_DOUBLE) ratio = *(const double*)settings.given_ratio;
    else if (settings.ratio_type == TYPE_HALF) ratio = to_float(*(const f16*)settings.given_ratio);
    else ratio = to_float(*(const bf16*)settings.given_ratio);
    if (!(ratio >= 0.0 && ratio <= 1.0)) {
      if (blockIdx.x == 0u && threadIdx.x == 0u) report(failure, check, __double_as_longlong(ratio), 0);
      return 0.0;
    }
  }
  const u32 training = settings.given_mode ? *settings.given_mode : settings.training;
  return training ? ratio : 0.0;
}

template <typename T> __device__ __forceinline__ T scaled(T x, double factor) {
  typedef typename Number<T>::Lane Lane;
  return Number<T>::narrow(Number<T>::lane(x) * (Lane)factor);
}

__device__ __forceinline__ double factor_of(double ratio) { return ratio < 1.0 ? 1.0 / (1.0 - ratio) : 0.0; }

// Four elements per block of the generator. Output and data may be one; the mask may be absent.
template <typename T>
__device__ __forceinline__ void dropout(const StepContext* context, u64 stream, const Settings& settings, const T* data,
                                        T* output, u8* mask, u64 count, Report* failure, u32 check) {
  const double ratio = ratio_of(settings, failure, check);
  const bool drops = ratio != 0.0;
  // An element is dropped where its 24 bits, as a number in [0, 1), lie below the ratio.
  const u32 least = (u32)ceil(ratio * 16777216.0);
  const double factor = factor_of(ratio);
  const u64 seed = context->seed, stride = (u64)gridDim.x * blockDim.x;
  for (u64 four = (u64)blockIdx.x * blockDim.x + threadIdx.x; four * 4 < count; four += stride) {
    u32 keep[4] = {1, 1, 1, 1};
    if (drops) {
      const Words words = philox(position(context, four), stream, seed);
#pragma unroll
      for (int i = 0; i < 4; i++) keep[i] = words.at[i] >> 8 >= least;
    }
    const u64 first = four * 4;
    if (first + 4 <= count) {
      Four<T> x = *reinterpret_cast<const Four<T>*>(data + first);
      if (drops) {
#pragma unroll
        for (int i = 0; i < 4; i++) x.at[i] = keep[i] ? scaled(x.at[i], factor) : Number<T>::narrow(0);
      }
      *reinterpret_cast<Four<T>*>(output + first) = x;
      if (mask) *reinterpret_cast<u32*>(mask + first) = keep[0] | keep[1] << 8 | keep[2] << 16 | keep[3] << 24;
    } else {
      for (u32 i = 0; first + i < count; i++) {
        const T x = data[first + i];
        output[first + i] = !drops ? x : keep[i] ? scaled(x, factor) : Number<T>::narrow(0);
        if (mask) mask[first + i] = (u8)keep[i];
      }
    }
  }
}

template <typename T>
__device__ __forceinline__ void dropout_gradient(const Settings& settings, const T* gradient, const u8* mask, T* output,
                                                 u64 count, Report* failure, u32 check) {
  const double ratio = ratio_of(settings, failure, check);
  const bool drops = ratio != 0.0;
  const double factor = factor_of(ratio);
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 four = (u64)blockIdx.x * blockDim.x + threadIdx.x; four * 4 < count; four += stride) {
    const u64 first = four * 4;
    if (first + 4 <= count) {
      Four<T> x = *reinterpret_cast<const Four<T>*>(gradient + first);
      if (drops) {
        const u32 keep = *reinterpret_cast<const u32*>(mask + first);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          x.at[i] = keep >> (8 * i) & 0xffu ? scaled(x.at[i], factor) : Number<T>::narrow(0);
        }
      }
      *reinterpret_cast<Four<T>*>(output + first) = x;
    } else {
      for (u64 i = first; i < count; i++) {
        const T x = gradient[i];
        output[i] = !drops ? x : mask[i] ? scaled(x, factor) : Number<T>::narrow(0);
      }
    }
  }
}

// Two numbers per block of the generator.
template <typename T>
__device__ __forceinline__ void uniform(const StepContext* context, u64 stream, double low, double high, T* output,
                                        u64 count) {
  typedef typename Number<T>::Lane Lane;
  const u64 seed = context->seed, stride = (u64)gridDim.x * blockDim.x;
  for (u64 two = (u64)blockIdx.x * blockDim.x + threadIdx.x; two * 2 < count; two += stride) {
    const Words words = philox(position(context, two), stream, seed);
    const double a = low + (high - low) * unit(words.at[0], words.at[1]);
    const double b = low + (high - low) * unit(words.at[2], words.at[3]);
    output[two * 2] = Number<T>::narrow((Lane)a);
    if (two * 2 + 1 < count) output[two * 2 + 1] = Number<T>::narrow((Lane)b);
  }
}

// By the method of Box and Muller in double precision.
template <typename T>
__device__ __forceinline__ void normal(const StepContext* context, u64 stream, double mean, double deviation, T* output,
                                       u64 count) {
  typedef typename Number<T>::Lane Lane;
  const u64 seed = context->seed, stride = (u64)gridDim.x * blockDim.x;
  for (u64 two = (u64)blockIdx.x * blockDim.x + threadIdx.x; two * 2 < count; two += stride) {
    const Words words = philox(position(context, two), stream, seed);
    const double radius = sqrt(-2.0 * log(1.0 - unit(words.at[0], words.at[1])));
    double sine, cosine;
    sincospi(2.0 * unit(words.at[2], words.at[3]), &sine, &cosine);
    output[two * 2] = Number<T>::narrow((Lane)(mean + deviation * (radius * cosine)));
    if (two * 2 + 1 < count) output[two * 2 + 1] = Number<T>::narrow((Lane)(mean + deviation * (radius * sine)));
  }
}

#define VELORA_DRAWS(SUFFIX, T)                                                                                        \
  extern "C" __global__ void dropout_##SUFFIX(const StepContext* context, u64 stream, Settings settings,                 \
                                              const T* data, T* output, u8* mask, u64 count, Report* failure,           \
                                              u32 check) {                                                             \
    dropout<T>(context, stream, settings, data, output, mask, count, failure, check);                                  \
  }                                                                                                                    \
  extern "C" __global__ void dropout_gradient_##SUFFIX(Settings settings, const T* gradient, const u8* mask, T* output,  \
                                                       u64 count, Report* failure, u32 check) {                        \
    dropout_gradient<T>(settings, gradient, mask, output, count, failure, check);                                      \
  }                                                                                                                    \
  extern "C" __global__ void uniform_##SUFFIX(const StepContext* context, u64 stream, double low, double high,           \
                                              T* output, u64 count) {                                                  \
    uniform<T>(context, stream, low, high, output, count);                                                             \
  }                                                                                                                    \
  extern "C" __global__ void normal_##SUFFIX(const StepContext* context, u64 stream, double mean, double deviation,      \
                                             T* output, u64 count) {                                                   \
    normal<T>(context, stream, mean, deviation, output, count);                                                        \
  }
VELORA_FLOATS(VELORA_DRAWS)

// `one` where a number lies below the probability, else 0.
template <typename T, typename U>
__device__ __forceinline__ void bernoulli(const StepContext* context, u64 stream, const T* probabilities, U one,
                                          U* output, u64 count) {
  const u64 seed = context->seed, stride = (u64)gridDim.x * blockDim.x;
  for (u64 two = (u64)blockIdx.x * blockDim.x + threadIdx.x; two * 2 < count; two += stride) {
    const Words words = philox(position(context, two), stream, seed);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
      const u64 at = two * 2 + i;
      if (at < count) {
        const double number = unit(words.at[2 * i], words.at[2 * i + 1]);
        output[at] = number < (double)Number<T>::lane(probabilities[at]) ? one : (U)0;
      }
    }
  }
}

#define VELORA_BERNOULLI(SUFFIX, T, WIDTH, U)                                                                  \
  extern "C" __global__ void bernoulli_##SUFFIX##_##WIDTH(const StepContext* context, u64 stream,               \
                                                          const T* probabilities, U one, U* output, u64 count) { \
    bernoulli<T, U>(context, stream, probabilities, one, output, count);                                       \
  }
#define VELORA_BERNOULLIS(SUFFIX, T)   \
  VELORA_BERNOULLI(SUFFIX, T, 1, u8)   \
  VELORA_BERNOULLI(SUFFIX, T, 2, u16)  \
  VELORA_BERNOULLI(SUFFIX, T, 4, u32)  \
  VELORA_BERNOULLI(SUFFIX, T, 8, u64)
VELORA_FLOATS(VELORA_BERNOULLIS)
