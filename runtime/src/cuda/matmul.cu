// What cuBLASLt does not do: integers, and operands of which neither rows nor columns lie side by side.
#include "common.cuh"

#define MOST_BATCH_AXES 8

// How a product's operands lie, in elements: `Access` of the runtime.
struct Shape {
  u64 m, n, k;
  u64 a_row, a_column, b_row, b_column;
  u64 axes;
  u64 sizes[MOST_BATCH_AXES], a_steps[MOST_BATCH_AXES], b_steps[MOST_BATCH_AXES];
};

template <typename T> struct Sum { typedef T Type; };
template <> struct Sum<f16> { typedef float Type; };
template <> struct Sum<bf16> { typedef float Type; };

template <typename T> __device__ __forceinline__ typename Sum<T>::Type wide(T x) { return (typename Sum<T>::Type)x; }
template <> __device__ __forceinline__ float wide<f16>(f16 x) { return to_float(x); }
template <> __device__ __forceinline__ float wide<bf16>(bf16 x) { return to_float(x); }
template <typename T> __device__ __forceinline__ T narrow(typename Sum<T>::Type x) { return (T)x; }
template <> __device__ __forceinline__ f16 narrow<f16>(float x) { return to_f16(x); }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return to_bf16(x); }

// One element of Y per thread: alpha * A B + beta * Y where it adds.
template <typename T>
__device__ __forceinline__ void strided(const T* a, const T* b, T* y, const Shape& shape, u64 count,
                                        typename Sum<T>::Type alpha, typename Sum<T>::Type beta, u32 adds) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  const u64 plane = shape.m * shape.n;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    u64 batch = i / plane;
    const u64 within = i - batch * plane, row = within / shape.n, column = within - row * shape.n;
    u64 at_a = row * shape.a_row, at_b = column * shape.b_column;
    for (int axis = (int)shape.axes - 1; axis >= 0; axis--) {
      const u64 rest = batch / shape.sizes[axis], position = batch - rest * shape.sizes[axis];
      at_a += position * shape.a_steps[axis];
      at_b += position * shape.b_steps[axis];
      batch = rest;
    }
    typename Sum<T>::Type sum = 0;
    for (u64 k = 0; k < shape.k; k++) sum += wide(a[at_a + k * shape.a_column]) * wide(b[at_b + k * shape.b_row]);
    sum = alpha * sum;
    if (adds) sum = sum + beta * wide(y[i]);
    y[i] = narrow<T>(sum);
  }
}

#define VELORA_STRIDED(SUFFIX, T)                                                                               \
  extern "C" __global__ void strided_##SUFFIX(const T* a, const T* b, T* y, Shape shape, u64 count, float alpha, \
                                              float beta, u32 adds) {                                           \
    strided<T>(a, b, y, shape, count, (Sum<T>::Type)alpha, (Sum<T>::Type)beta, adds);                           \
  }
VELORA_FLOATS(VELORA_STRIDED)
VELORA_STRIDED(i32, u32)
VELORA_STRIDED(i64, u64)

// Y = C over all matrices of a batch, with the steps of C's rows and columns.
template <typename T>
__device__ __forceinline__ void spread(const T* c, T* y, u64 m, u64 n, u64 row_step, u64 column_step, u64 count) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u64 row = i / n;
    y[i] = c[(row % m) * row_step + (i - row * n) * column_step];
  }
}
#define VELORA_SPREAD(SUFFIX, T)                                                                               \
  extern "C" __global__ void spread_##SUFFIX(const T* c, T* y, u64 m, u64 n, u64 row_step, u64 column_step,     \
                                             u64 count) {                                                      \
    spread<T>(c, y, m, n, row_step, column_step, count);                                                       \
  }
VELORA_FLOATS(VELORA_SPREAD)
VELORA_SPREAD(i32, u32)
VELORA_SPREAD(i64, u64)

// Y = factor * Y, for products over nothing.
template <typename T> __device__ __forceinline__ void scale(T* y, typename Sum<T>::Type factor, u64 count) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) y[i] = narrow<T>(factor * wide(y[i]));
}
#define VELORA_SCALE(SUFFIX, T) \
  extern "C" __global__ void scale_##SUFFIX(T* y, float factor, u64 count) { scale<T>(y, (Sum<T>::Type)factor, count); }
VELORA_FLOATS(VELORA_SCALE)
VELORA_SCALE(i32, u32)
VELORA_SCALE(i64, u64)
