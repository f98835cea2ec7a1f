// Copies of boxes between strided layouts, triangles and sequences.
#include "common.cuh"

#define MOST_AXES 8

// A box, its axes outermost first, in elements: `Box` of the backend. Sizes are those of the axes behind
// the first, which needs no division.
template <typename Size> struct Box {
  u64 count;
  u64 axes;
  i64 from_start;
  u64 to_start;
  i64 from[MOST_AXES];
  u64 to[MOST_AXES];
  Size sizes[MOST_AXES];
};

struct Whole { u64 size; };

__device__ __forceinline__ u64 quotient(u64 number, const Divider& by) { return divide((u32)number, by); }
__device__ __forceinline__ u64 quotient(u64 number, const Whole& by) { return number / by.size; }

// Where an element of the box is read and written, by its number in row-major order.
template <typename Size>
__device__ __forceinline__ void places(const Box<Size>& box, u64 number, i64& from, u64& to) {
  from = box.from_start;
  to = box.to_start;
#pragma unroll
  for (int axis = MOST_AXES - 1; axis > 0; axis--) {
    if (axis < (int)box.axes) {
      const u64 rest = quotient(number, box.sizes[axis]);
      const u64 position = number - rest * box.sizes[axis].size;
      from += (i64)position * box.from[axis];
      to += position * box.to[axis];
      number = rest;
    }
  }
  from += (i64)number * box.from[0];
  to += number * box.to[0];
}

template <typename T, typename Size>
__device__ __forceinline__ void copy_box(const T* from, T* to, const Box<Size>& box) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < box.count; i += stride) {
    i64 read;
    u64 write;
    places(box, i, read, write);
    to[write] = from[read];
  }
}

// All elements of the box are one, which the host knows.
template <typename T, typename Size>
__device__ __forceinline__ void fill_box(T element, T* to, const Box<Size>& box) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < box.count; i += stride) {
    i64 read;
    u64 write;
    places(box, i, read, write);
    to[write] = element;
  }
}

#define VELORA_BOXES(WIDTH, T)                                                                                       \
  extern "C" __global__ void copy_##WIDTH(const T* from, T* to, Box<Divider> box) { copy_box<T>(from, to, box); }      \
  extern "C" __global__ void copy_wide_##WIDTH(const T* from, T* to, Box<Whole> box) { copy_box<T>(from, to, box); }   \
  extern "C" __global__ void fill_##WIDTH(T element, T* to, Box<Divider> box) { fill_box<T>(element, to, box); }       \
  extern "C" __global__ void fill_wide_##WIDTH(T element, T* to, Box<Whole> box) { fill_box<T>(element, to, box); }
VELORA_WIDTHS(VELORA_BOXES)
VELORA_BOXES(16, Sixteen)

#define TILE 32

// A matrix whose rows lie side by side in the input along one axis and in the output along the other, for
// every position of the box's other axes: `Tiles` of the backend.
struct Tiles {
  // How many tiles in all, and along each axis of the matrix.
  u64 count;
  u64 across, down;
  // The axis with step 1 in the input, and that with step 1 in the output.
  u64 rows, columns;
  u64 row_to;
  i64 column_from;
};

// 32 x 8 threads; a row of a tile is read and written side by side.
template <typename T>
__device__ __forceinline__ void transpose(const T* from, T* to, const Tiles& tiles, const Box<Whole>& outer) {
  __shared__ T tile[TILE][TILE + 1];
  const u32 x = threadIdx.x & 31u, y = threadIdx.x >> 5;
  for (u64 number = blockIdx.x; number < tiles.count; number += gridDim.x) {
    const u64 line = number / tiles.across;
    const u64 column = (number - line * tiles.across) * TILE;
    const u64 matrix = line / tiles.down;
    const u64 row = (line - matrix * tiles.down) * TILE;
    i64 read;
    u64 write;
    places(outer, matrix, read, write);
#pragma unroll
    for (u32 j = 0; j < TILE; j += 8) {
      const u64 c = column + y + j;
      if (row + x < tiles.rows && c < tiles.columns) {
        tile[y + j][x] = from[read + (i64)c * tiles.column_from + (i64)(row + x)];
      }
    }
    __syncthreads();
#pragma unroll
    for (u32 j = 0; j < TILE; j += 8) {
      const u64 r = row + y + j;
      if (r < tiles.rows && column + x < tiles.columns) {
        to[write + r * tiles.row_to + column + x] = tile[x][y + j];
      }
    }
    __syncthreads();
  }
}

#define VELORA_TRANSPOSE(WIDTH, T)                                                                              \
  extern "C" __global__ void transpose_##WIDTH(const T* from, T* to, Tiles tiles, Box<Whole> outer) {            \
    transpose<T>(from, to, tiles, outer);                                                                       \
  }
VELORA_WIDTHS(VELORA_TRANSPOSE)

// Keeps one triangle of matrices; `given` is the diagonal where it is not known. Input and output may be one.
template <typename T>
__device__ __forceinline__ void triangle(const T* from, T* to, u64 rows, u64 columns, u64 all_rows, i64 diagonal,
                                         const i64* given, u32 upper) {
  if (given) diagonal = *given;
  // Some threads for each row: as many as a block has where rows are long.
  const u32 across = blockDim.x, down = blockDim.y;
  const u64 stride = (u64)gridDim.x * down;
  for (u64 line = (u64)blockIdx.x * down + threadIdx.y; line < all_rows; line += stride) {
    const i64 row = (i64)(line % rows);
    for (u64 column = threadIdx.x; column < columns; column += across) {
      const i64 above = (i64)column - row;
      const bool keeps = upper ? above >= diagonal : above <= diagonal;
      const u64 at = line * columns + column;
      if (!keeps) to[at] = (T)0;
      else if (from != to) to[at] = from[at];
    }
  }
}

#define VELORA_TRIANGLE(WIDTH, T)                                                                                  \
  extern "C" __global__ void triangle_##WIDTH(const T* from, T* to, u64 rows, u64 columns, u64 all_rows,             \
                                              i64 diagonal, const i64* given, u32 upper) {                         \
    triangle<T>(from, to, rows, columns, all_rows, diagonal, given, upper);                                        \
  }
VELORA_WIDTHS(VELORA_TRIANGLE)

// start + i * step, wrapped around.
template <typename T> __device__ __forceinline__ void sequence(T* to, i64 start, i64 step, u64 count) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = (T)((u64)start + (u64)step * i);
  }
}
extern "C" __global__ void sequence_i16(i16* to, i64 start, i64 step, u64 count) { sequence(to, start, step, count); }
extern "C" __global__ void sequence_i32(i32* to, i64 start, i64 step, u64 count) { sequence(to, start, step, count); }
extern "C" __global__ void sequence_i64(i64* to, i64 start, i64 step, u64 count) { sequence(to, start, step, count); }

template <typename T> __device__ __forceinline__ void ramp(T* to, double start, double step, u64 count) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = Number<T>::narrow((typename Number<T>::Lane)(start + step * (double)i));
  }
}
#define VELORA_RAMP(SUFFIX, T) \
  extern "C" __global__ void ramp_##SUFFIX(T* to, double start, double step, u64 count) { ramp<T>(to, start, step, count); }
VELORA_FLOATS(VELORA_RAMP)
