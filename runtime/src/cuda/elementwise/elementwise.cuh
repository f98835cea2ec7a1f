// What generated kernels are made of. A value is a float (also where memory holds 16 bits), a double, a 64-bit
// integer, or a byte for a boolean; the results are those of the CPU's kernels, but for the last bits of
// functions that no machine rounds correctly.
#include "common.cuh"

template <typename T> struct alignas(4 * sizeof(T)) Four { T at[4]; };

template <typename T> __device__ __forceinline__ Four<T> load_four(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}
template <typename T> __device__ __forceinline__ void store_four(T* to, const Four<T>& from) {
  *reinterpret_cast<Four<T>*>(to) = from;
}

// From memory to values.
__device__ __forceinline__ float value(float x) { return x; }
__device__ __forceinline__ float value(f16 x) { return to_float(x); }
__device__ __forceinline__ float value(bf16 x) { return to_float(x); }
__device__ __forceinline__ double value(double x) { return x; }
__device__ __forceinline__ i64 value(i8 x) { return x; }
__device__ __forceinline__ i64 value(u16 x) { return x; }
__device__ __forceinline__ i64 value(i16 x) { return x; }
__device__ __forceinline__ i64 value(u32 x) { return x; }
__device__ __forceinline__ i64 value(i32 x) { return x; }
__device__ __forceinline__ i64 value(i64 x) { return x; }
__device__ __forceinline__ u64 value(u64 x) { return x; }

// To the type of a result: rounded, or wrapped around.
__device__ __forceinline__ float as_f16(float x) { return to_float(to_f16(x)); }
__device__ __forceinline__ float as_bf16(float x) { return to_float(to_bf16(x)); }

// From one class to another; towards zero, at the ends of the range where it is beyond, and 0 for NaN.
__device__ __forceinline__ i64 to_i64(float x) { return x != x ? 0 : __float2ll_rz(x); }
__device__ __forceinline__ i64 to_i64(double x) { return x != x ? 0 : __double2ll_rz(x); }
__device__ __forceinline__ u64 to_u64(float x) { return x != x ? 0 : __float2ull_rz(x); }
__device__ __forceinline__ u64 to_u64(double x) { return x != x ? 0 : __double2ull_rz(x); }

template <typename T> __device__ __forceinline__ T sign(T x) { return x > (T)0 ? (T)1 : x < (T)0 ? (T)-1 : x == (T)0 ? (T)0 : x; }
__device__ __forceinline__ i64 absolute(i64 x) { return x < 0 ? (i64)(0ull - (u64)x) : x; }
__device__ __forceinline__ u64 absolute(u64 x) { return x; }
__device__ __forceinline__ float absolute(float x) { return fabsf(x); }
__device__ __forceinline__ double absolute(double x) { return fabs(x); }
__device__ __forceinline__ i64 negative(i64 x) { return (i64)(0ull - (u64)x); }
__device__ __forceinline__ u64 negative(u64 x) { return 0ull - x; }
__device__ __forceinline__ float negative(float x) { return -x; }
__device__ __forceinline__ double negative(double x) { return -x; }

#define VELORA_FUNCTION(NAME, SINGLE, DOUBLE)                             \
  __device__ __forceinline__ float NAME(float x) { return SINGLE(x); }    \
  __device__ __forceinline__ double NAME(double x) { return DOUBLE(x); }
VELORA_FUNCTION(square_root, sqrtf, sqrt)
VELORA_FUNCTION(exponential, expf, exp)
VELORA_FUNCTION(logarithm, logf, log)
VELORA_FUNCTION(sine, sinf, sin)
VELORA_FUNCTION(cosine, cosf, cos)
VELORA_FUNCTION(tangent, tanf, tan)
VELORA_FUNCTION(arcsine, asinf, asin)
VELORA_FUNCTION(arccosine, acosf, acos)
VELORA_FUNCTION(arctangent, atanf, atan)
VELORA_FUNCTION(hyperbolic_sine, sinhf, sinh)
VELORA_FUNCTION(hyperbolic_cosine, coshf, cosh)
VELORA_FUNCTION(hyperbolic_tangent, tanhf, tanh)
VELORA_FUNCTION(area_sine, asinhf, asinh)
VELORA_FUNCTION(area_cosine, acoshf, acosh)
VELORA_FUNCTION(area_tangent, atanhf, atanh)
VELORA_FUNCTION(error_function, erff, erf)
VELORA_FUNCTION(round_down, floorf, floor)
VELORA_FUNCTION(round_up, ceilf, ceil)
VELORA_FUNCTION(round_even, rintf, rint)
__device__ __forceinline__ float reciprocal(float x) { return 1.f / x; }
__device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }
__device__ __forceinline__ float sigmoid(float x) { const float e = expf(-fabsf(x)); return (x < 0.f ? e : 1.f) / (1.f + e); }
__device__ __forceinline__ double sigmoid(double x) { const double e = exp(-fabs(x)); return (x < 0.0 ? e : 1.0) / (1.0 + e); }
__device__ __forceinline__ float softplus(float x) { return x != x ? x : fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }
__device__ __forceinline__ double softplus(double x) { return x != x ? x : fmax(x, 0.0) + log1p(exp(-fabs(x))); }

__device__ __forceinline__ float add(float x, float y) { return x + y; }
__device__ __forceinline__ double add(double x, double y) { return x + y; }
__device__ __forceinline__ i64 add(i64 x, i64 y) { return (i64)((u64)x + (u64)y); }
__device__ __forceinline__ u64 add(u64 x, u64 y) { return x + y; }
__device__ __forceinline__ float subtract(float x, float y) { return x - y; }
__device__ __forceinline__ double subtract(double x, double y) { return x - y; }
__device__ __forceinline__ i64 subtract(i64 x, i64 y) { return (i64)((u64)x - (u64)y); }
__device__ __forceinline__ u64 subtract(u64 x, u64 y) { return x - y; }
__device__ __forceinline__ float multiply(float x, float y) { return x * y; }
__device__ __forceinline__ double multiply(double x, double y) { return x * y; }
__device__ __forceinline__ i64 multiply(i64 x, i64 y) { return (i64)((u64)x * (u64)y); }
__device__ __forceinline__ u64 multiply(u64 x, u64 y) { return x * y; }
// Of integers towards zero; by 0 it is 0, and the least one by -1 is itself.
__device__ __forceinline__ float divide(float x, float y) { return x / y; }
__device__ __forceinline__ double divide(double x, double y) { return x / y; }
__device__ __forceinline__ i64 divide(i64 x, i64 y) { return y == 0 ? 0 : y == -1 ? negative(x) : x / y; }
__device__ __forceinline__ u64 divide(u64 x, u64 y) { return y == 0 ? 0 : x / y; }
// The remainder with the sign of the dividend, and with that of the divisor.
__device__ __forceinline__ float remainder_of(float x, float y) { return fmodf(x, y); }
__device__ __forceinline__ double remainder_of(double x, double y) { return fmod(x, y); }
__device__ __forceinline__ i64 remainder_of(i64 x, i64 y) { return y == 0 || y == -1 ? 0 : x % y; }
__device__ __forceinline__ u64 remainder_of(u64 x, u64 y) { return y == 0 ? 0 : x % y; }
template <typename T> __device__ __forceinline__ T modulo(T x, T y) {
  const T rest = remainder_of(x, y);
  return rest != (T)0 && (rest < (T)0) != (y < (T)0) ? rest + y : rest;
}
__device__ __forceinline__ u64 modulo(u64 x, u64 y) { return remainder_of(x, y); }
__device__ __forceinline__ float power(float x, float y) { return powf(x, y); }
__device__ __forceinline__ double power(double x, double y) { return pow(x, y); }
__device__ __forceinline__ u64 power(u64 x, u64 y) {
  u64 result = 1;
  for (; y != 0; y >>= 1, x *= x) if (y & 1) result *= x;
  return result;
}
__device__ __forceinline__ i64 power(i64 x, i64 y) {
  if (y >= 0) return (i64)power((u64)x, (u64)y);
  return x == 1 ? 1 : x == -1 ? ((y & 1) ? -1 : 1) : 0;
}
// The lesser and the greater one: a NaN on the left is taken, one on the right never is.
template <typename T> __device__ __forceinline__ T lesser(T x, T y) { return x < y || x != x ? x : y; }
template <typename T> __device__ __forceinline__ T greater(T x, T y) { return x > y || x != x ? x : y; }
__device__ __forceinline__ i64 both(i64 x, i64 y) { return x & y; }
__device__ __forceinline__ u64 both(u64 x, u64 y) { return x & y; }
__device__ __forceinline__ u8 both(u8 x, u8 y) { return x != 0 && y != 0; }
__device__ __forceinline__ i64 either(i64 x, i64 y) { return x | y; }
__device__ __forceinline__ u64 either(u64 x, u64 y) { return x | y; }
__device__ __forceinline__ u8 either(u8 x, u8 y) { return x != 0 || y != 0; }
__device__ __forceinline__ i64 one_of(i64 x, i64 y) { return x ^ y; }
__device__ __forceinline__ u64 one_of(u64 x, u64 y) { return x ^ y; }
__device__ __forceinline__ u8 one_of(u8 x, u8 y) { return (x != 0) != (y != 0); }
// Shifts of a type with so many bits; by as many or more they give 0.
__device__ __forceinline__ i64 shift_up(i64 x, i64 y, i64 bits) { return y >= 0 && y < bits ? (i64)((u64)x << y) : 0; }
__device__ __forceinline__ u64 shift_up(u64 x, u64 y, i64) { return y < 64 ? x << y : 0; }
__device__ __forceinline__ i64 shift_down(i64 x, i64 y, i64 bits) { return y >= 0 && y < bits ? x >> y : 0; }
__device__ __forceinline__ u64 shift_down(u64 x, u64 y, i64) { return y < 64 ? x >> y : 0; }
__device__ __forceinline__ i64 inverse(i64 x) { return ~x; }
__device__ __forceinline__ u64 inverse(u64 x) { return ~x; }
__device__ __forceinline__ u8 inverse(u8 x) { return x == 0; }
