// What all kernels share: numbers, sums over warps and blocks, random bits, and how data that does not fit
// is reported. Compiled with --fmad=false: products and sums are rounded one by one where nothing else is said.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;

#define INFINITY_F __int_as_float(0x7f800000)
#define NAN_F __int_as_float(0x7fc00000)
#define INFINITY_D __longlong_as_double(0x7ff0000000000000ll)
#define NAN_D __longlong_as_double(0x7ff8000000000000ll)

// IEEE half and bfloat16, as they lie in memory; both are computed with as float.
struct f16 { u16 bits; };
struct bf16 { u16 bits; };

__device__ __forceinline__ float to_float(f16 x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
  return r;
}
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ f16 to_f16(float x) {
  f16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
  return r;
}
// To the nearest, the even one of two; a NaN stays one.
__device__ __forceinline__ bf16 to_bf16(float x) {
  const u32 bits = __float_as_uint(x);
  bf16 r;
  if ((bits & 0x7fffffffu) > 0x7f800000u) r.bits = (u16)((bits >> 16) | 0x0040u);
  else r.bits = (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  return r;
}

// How an element type is computed with (its lane), and what long sums are kept in (wide): floats in double,
// integers in 64 bits. Integers wrap around where they are stored.
template <typename T> struct Number;
template <> struct Number<float> {
  typedef float Lane; typedef double Wide;
  static __device__ __forceinline__ float lane(float x) { return x; }
  static __device__ __forceinline__ float narrow(float x) { return x; }
};
template <> struct Number<double> {
  typedef double Lane; typedef double Wide;
  static __device__ __forceinline__ double lane(double x) { return x; }
  static __device__ __forceinline__ double narrow(double x) { return x; }
};
template <> struct Number<f16> {
  typedef float Lane; typedef double Wide;
  static __device__ __forceinline__ float lane(f16 x) { return to_float(x); }
  static __device__ __forceinline__ f16 narrow(float x) { return to_f16(x); }
};
template <> struct Number<bf16> {
  typedef float Lane; typedef double Wide;
  static __device__ __forceinline__ float lane(bf16 x) { return to_float(x); }
  static __device__ __forceinline__ bf16 narrow(float x) { return to_bf16(x); }
};
#define VELORA_INTEGER(T)                                                    \
  template <> struct Number<T> {                                             \
    typedef i64 Lane; typedef i64 Wide;                                      \
    static __device__ __forceinline__ i64 lane(T x) { return (i64)x; }       \
    static __device__ __forceinline__ T narrow(i64 x) { return (T)x; }       \
  };
VELORA_INTEGER(u8) VELORA_INTEGER(i8) VELORA_INTEGER(u16) VELORA_INTEGER(i16)
VELORA_INTEGER(u32) VELORA_INTEGER(i32) VELORA_INTEGER(u64) VELORA_INTEGER(i64)

// Makes NAME_f32, NAME_f64, NAME_f16 and NAME_bf16 of a macro that takes a suffix and a type.
#define VELORA_FLOATS(MAKE) MAKE(f32, float) MAKE(f64, double) MAKE(f16, f16) MAKE(bf16, bf16)

#define FULL_WARP 0xffffffffu

// Division by a number that the host knows: `Divider` of the backend.
struct Divider { u32 size, factor, shift; };

__device__ __forceinline__ u32 divide(u32 number, const Divider& by) {
  return (__umulhi(number, by.factor) + number) >> by.shift;
}

// Elements of a width, where they are moved and not computed with.
struct alignas(16) Sixteen { u64 low, high; };

// Makes NAME_1, NAME_2, NAME_4 and NAME_8 of a macro that takes a width and a type.
#define VELORA_WIDTHS(MAKE) MAKE(1, u8) MAKE(2, u16) MAKE(4, u32) MAKE(8, u64)

// The lanes of a full warp that hold the same number, of which `bits` bits count.
__device__ __forceinline__ u32 warp_peers(u32 number, u32 bits) {
  u32 peers = FULL_WARP;
  for (u32 bit = 0; bit < bits; bit++) {
    const u32 set = __ballot_sync(FULL_WARP, (number >> bit) & 1u);
    peers &= (number >> bit) & 1u ? set : ~set;
  }
  return peers;
}

template <typename T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(FULL_WARP, x, lanes);
  return x;
}

// The greater one; a NaN on either side stays one.
template <typename T> __device__ __forceinline__ T max_or_nan(T a, T b) { return (a > b || a != a) ? a : b; }

template <typename T> __device__ __forceinline__ T warp_max(T x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) x = max_or_nan(x, __shfl_xor_sync(FULL_WARP, x, lanes));
  return x;
}

// Sum over a block of whole warps, at most 32 of them; every thread gets it. `shared` has 32 places, and
// may be used again when this returns.
template <typename T> __device__ __forceinline__ T block_sum(T x, T* shared) {
  const u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_sum(x);
  if (lane == 0u) shared[warp] = x;
  __syncthreads();
  x = lane < warps ? shared[lane] : (T)0;
  x = warp_sum(x);
  __syncthreads();
  return x;
}

template <typename T> __device__ __forceinline__ T block_max(T x, T* shared, T lowest) {
  const u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_max(x);
  if (lane == 0u) shared[warp] = x;
  __syncthreads();
  x = lane < warps ? shared[lane] : lowest;
  x = warp_max(x);
  __syncthreads();
  return x;
}

// What changes from step to step without being a tensor (`StepContext`).
struct StepContext { u64 seed; u64 step; };

// Where a kernel says that data does not fit: the check that failed (0 for none; the first to report
// stays), and two numbers for its message.
struct Report { u32 check; u32 unused; i64 position; i64 value; };

__device__ __forceinline__ void report(Report* report, u32 check, i64 position, i64 value) {
  if (atomicCAS(&report->check, 0u, check) == 0u) {
    report->position = position;
    report->value = value;
  }
}

// Elements that lie side by side, moved at once; at most 16 bytes.
template <typename T, int N> struct Pack { T at[N]; };
template <int BYTES> struct Raw;
template <> struct Raw<1> { typedef u8 Type; };
template <> struct Raw<2> { typedef u16 Type; };
template <> struct Raw<4> { typedef u32 Type; };
template <> struct Raw<8> { typedef uint2 Type; };
template <> struct Raw<16> { typedef uint4 Type; };
template <int N, typename T> __device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  typedef typename Raw<sizeof(T) * N>::Type Whole;
  const Whole whole = *reinterpret_cast<const Whole*>(from);
  Pack<T, N> pack;
  memcpy(&pack, &whole, sizeof(pack));
  return pack;
}
template <typename T, int N> __device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) {
  typedef typename Raw<sizeof(T) * N>::Type Whole;
  Whole whole;
  memcpy(&whole, &pack, sizeof(pack));
  *reinterpret_cast<Whole*>(to) = whole;
}

// Division by a number that the host knows (`Divisor` of the launcher): a product and a shift for what has
// 32 bits.
struct Divisor { u64 divisor; u32 multiplier, shift; };
__device__ __forceinline__ u64 quotient(u64 n, const Divisor& by) {
  if (n >> 32) return n / by.divisor;
  return ((u64)__umulhi((u32)n, by.multiplier) + (u32)n) >> by.shift;
}
