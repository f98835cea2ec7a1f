// What reads or writes at places given by a tensor.
//
// Scattering sorts the updates by the element or row that they go to: a stable radix sort of 8 bits at a time,
// in which every count and place depends on the indices only. What goes to one place is then combined by one
// thread per column, in the order of the updates, without atomics: that is the CPU's order.
#include "common.cuh"

#define MOST_AXES 8

template <typename I> __device__ __forceinline__ i64 index_at(const void* indices, u64 place) {
  return (i64)((const I*)indices)[place];
}

// The place that an index means; one that is outside the axis is reported, and false.
__device__ __forceinline__ bool resolve(i64 index, u32 bound, i64 position, Report* failure, u32 check, u32& place) {
  if (index < -(i64)bound || index >= (i64)bound) {
    report(failure, check, position, index);
    return false;
  }
  place = (u32)(index < 0 ? index + (i64)bound : index);
  return true;
}

// How rows are addressed: `RowShape` of the backend.
struct RowShape {
  u32 depth;
  // Rows of a batch's data.
  u32 rows;
  u32 bounds[MOST_AXES];
  // Tuples of a batch, batches, and elements of a row.
  Divider count, batch, slice;
};

// The row that a tuple of indices means.
template <typename I>
__device__ __forceinline__ bool row_of(const void* indices, u32 tuple, const RowShape& shape, Report* failure,
                                       u32 check, u32& row) {
  row = 0;
  for (u32 axis = 0; axis < shape.depth; axis++) {
    const u64 at = (u64)tuple * shape.depth + axis;
    u32 place;
    if (!resolve(index_at<I>(indices, at), shape.bounds[axis], (i64)at, failure, check, place)) return false;
    row = row * shape.bounds[axis] + place;
  }
  return true;
}

template <typename T> __device__ __forceinline__ T nothing() { return (T)0; }
template <> __device__ __forceinline__ Sixteen nothing<Sixteen>() { Sixteen none = {0, 0}; return none; }

// One element of the output per thread, neighbours in a row side by side.
template <typename T, typename I>
__device__ __forceinline__ void gather(const T* data, const void* indices, T* output, const RowShape& shape, u32 count,
                                       Report* failure, u32 check) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 number = divide(i, shape.slice), within = i - number * shape.slice.size;
    const u32 lane = divide(number, shape.count), tuple = number - lane * shape.count.size;
    const u32 batch = lane - divide(lane, shape.batch) * shape.batch.size;
    u32 row;
    T element = nothing<T>();
    if (row_of<I>(indices, batch * shape.count.size + tuple, shape, failure, check, row)) {
      element = data[((u64)lane * shape.rows + row) * shape.slice.size + within];
    }
    output[i] = element;
  }
}

#define VELORA_GATHER(WIDTH, T)                                                                                     \
  extern "C" __global__ void gather_i32_##WIDTH(const T* data, const void* indices, T* output, RowShape shape,        \
                                                u32 count, Report* failure, u32 check) {                            \
    gather<T, i32>(data, indices, output, shape, count, failure, check);                                            \
  }                                                                                                                 \
  extern "C" __global__ void gather_i64_##WIDTH(const T* data, const void* indices, T* output, RowShape shape,        \
                                                u32 count, Report* failure, u32 check) {                            \
    gather<T, i64>(data, indices, output, shape, count, failure, check);                                            \
  }
VELORA_WIDTHS(VELORA_GATHER)
VELORA_GATHER(16, Sixteen)

// How single elements are addressed: `ElementShape` of the backend. Axes outermost first; the step of the
// data along the indexed axis is applied to the index, those along the others to the position.
struct ElementShape {
  u32 axes;
  u32 bound;
  u64 step;
  u64 steps[MOST_AXES];
  Divider sizes[MOST_AXES];
};

template <typename I>
__device__ __forceinline__ bool element_of(const void* indices, u32 number, const ElementShape& shape, Report* failure,
                                           u32 check, u64& element) {
  u32 place;
  if (!resolve(index_at<I>(indices, number), shape.bound, (i64)number, failure, check, place)) return false;
  element = place * shape.step;
#pragma unroll
  for (int axis = MOST_AXES - 1; axis >= 0; axis--) {
    if (axis < (int)shape.axes) {
      const u32 rest = divide(number, shape.sizes[axis]);
      element += (number - rest * shape.sizes[axis].size) * shape.steps[axis];
      number = rest;
    }
  }
  return true;
}

template <typename T, typename I>
__device__ __forceinline__ void gather_elements(const T* data, const void* indices, T* output, const ElementShape& shape,
                                                u32 count, Report* failure, u32 check) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    u64 element;
    output[i] = element_of<I>(indices, i, shape, failure, check, element) ? data[element] : (T)0;
  }
}

#define VELORA_GATHER_ELEMENTS(WIDTH, T)                                                                          \
  extern "C" __global__ void gather_elements_i32_##WIDTH(const T* data, const void* indices, T* output,            \
                                                         ElementShape shape, u32 count, Report* failure,          \
                                                         u32 check) {                                             \
    gather_elements<T, i32>(data, indices, output, shape, count, failure, check);                                 \
  }                                                                                                               \
  extern "C" __global__ void gather_elements_i64_##WIDTH(const T* data, const void* indices, T* output,            \
                                                         ElementShape shape, u32 count, Report* failure,          \
                                                         u32 check) {                                             \
    gather_elements<T, i64>(data, indices, output, shape, count, failure, check);                                 \
  }
VELORA_WIDTHS(VELORA_GATHER_ELEMENTS)

// The row or element that each update goes to; `none`, which is greater than all, where the index is outside.
template <typename I>
__device__ __forceinline__ void row_keys(const void* indices, u32* keys, const RowShape& shape, u32 count, u32 none,
                                         Report* failure, u32 check) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 tuple = blockIdx.x * blockDim.x + threadIdx.x; tuple < count; tuple += stride) {
    u32 row;
    const bool fits = row_of<I>(indices, tuple, shape, failure, check, row);
    keys[tuple] = fits ? divide(tuple, shape.count) * shape.rows + row : none;
  }
}
extern "C" __global__ void row_keys_i32(const void* indices, u32* keys, RowShape shape, u32 count, u32 none,
                                        Report* failure, u32 check) {
  row_keys<i32>(indices, keys, shape, count, none, failure, check);
}
extern "C" __global__ void row_keys_i64(const void* indices, u32* keys, RowShape shape, u32 count, u32 none,
                                        Report* failure, u32 check) {
  row_keys<i64>(indices, keys, shape, count, none, failure, check);
}

template <typename I>
__device__ __forceinline__ void element_keys(const void* indices, u32* keys, const ElementShape& shape, u32 count,
                                             u32 none, Report* failure, u32 check) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    u64 element;
    keys[i] = element_of<I>(indices, i, shape, failure, check, element) ? (u32)element : none;
  }
}
extern "C" __global__ void element_keys_i32(const void* indices, u32* keys, ElementShape shape, u32 count, u32 none,
                                            Report* failure, u32 check) {
  element_keys<i32>(indices, keys, shape, count, none, failure, check);
}
extern "C" __global__ void element_keys_i64(const void* indices, u32* keys, ElementShape shape, u32 count, u32 none,
                                            Report* failure, u32 check) {
  element_keys<i64>(indices, keys, shape, count, none, failure, check);
}

// Keys of a block, a thread for each digit.
#define DIGITS 256
#define SORT_TILE 1024
#define WARPS (DIGITS / 32)

__device__ __forceinline__ u32 digit_of(u32 key, u32 shift) { return (key >> shift) & (DIGITS - 1); }

// How often each digit occurs in each tile: counts[digit * tiles + tile]. One block of 256 threads per tile.
extern "C" __global__ void count_digits(const u32* keys, u32* counts, u32 count, u32 tiles, u32 shift) {
  __shared__ u32 seen[DIGITS];
  seen[threadIdx.x] = 0u;
  __syncthreads();
  const u32 first = blockIdx.x * SORT_TILE;
#pragma unroll
  for (u32 i = 0; i < SORT_TILE; i += DIGITS) {
    const u32 at = first + i + threadIdx.x;
    if (at < count) atomicAdd(&seen[digit_of(keys[at], shift)], 1u);
  }
  __syncthreads();
  counts[threadIdx.x * tiles + blockIdx.x] = seen[threadIdx.x];
}

// Each number becomes the sum of those before it. One block of 1024 threads.
extern "C" __global__ void add_up(u32* numbers, u32 count) {
  __shared__ u32 sums[32];
  const u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5;
  u32 before = 0u;
  for (u32 first = 0; first < count; first += 1024u) {
    const u32 at = first + threadIdx.x;
    const u32 own = at < count ? numbers[at] : 0u;
    u32 sum = own;
#pragma unroll
    for (u32 lanes = 1; lanes < 32u; lanes <<= 1) {
      const u32 other = __shfl_up_sync(FULL_WARP, sum, lanes);
      if (lane >= lanes) sum += other;
    }
    if (lane == 31u) sums[warp] = sum;
    __syncthreads();
    // Every warp adds up the sums of all warps for itself.
    u32 of_warps = sums[lane];
#pragma unroll
    for (u32 lanes = 1; lanes < 32u; lanes <<= 1) {
      const u32 other = __shfl_up_sync(FULL_WARP, of_warps, lanes);
      if (lane >= lanes) of_warps += other;
    }
    const u32 of_earlier = __shfl_sync(FULL_WARP, of_warps, (warp + 31u) & 31u);
    const u32 of_all = __shfl_sync(FULL_WARP, of_warps, 31);
    if (at < count) numbers[at] = before + (warp > 0u ? of_earlier : 0u) + sum - own;
    before += of_all;
    __syncthreads();
  }
}

// Moves the keys of a tile with their updates to their places, those of one digit in the order in which they
// are. The first pass has no `order` yet: it is that of the updates.
extern "C" __global__ void sort_by_digit(const u32* keys, const u32* order, u32* sorted_keys, u32* sorted_order,
                                         const u32* counts, u32 count, u32 tiles, u32 shift) {
  // Where the next key of each digit goes, and how many the warps of a round have of it.
  __shared__ u32 next[DIGITS];
  __shared__ u32 seen[WARPS][DIGITS];
  const u32 lane = threadIdx.x & 31u, warp = threadIdx.x >> 5;
  next[threadIdx.x] = counts[threadIdx.x * tiles + blockIdx.x];
  for (u32 i = 0; i < SORT_TILE; i += DIGITS) {
#pragma unroll
    for (u32 other = 0; other < WARPS; other++) seen[other][threadIdx.x] = 0u;
    __syncthreads();
    const u32 at = blockIdx.x * SORT_TILE + i + threadIdx.x;
    const bool is_key = at < count;
    const u32 key = is_key ? keys[at] : 0u;
    const u32 digit = digit_of(key, shift);
    // What is no key is a digit of its own.
    const u32 peers = warp_peers(is_key ? digit : DIGITS, 9);
    const u32 rank = __popc(peers & ((1u << lane) - 1u));
    if (is_key && rank == 0u) seen[warp][digit] = __popc(peers);
    __syncthreads();
    // A thread for each digit: what the warps have becomes where they begin.
    u32 place = next[threadIdx.x];
#pragma unroll
    for (u32 other = 0; other < WARPS; other++) {
      const u32 own = seen[other][threadIdx.x];
      seen[other][threadIdx.x] = place;
      place += own;
    }
    next[threadIdx.x] = place;
    __syncthreads();
    if (is_key) {
      const u32 to = seen[warp][digit] + rank;
      sorted_keys[to] = key;
      sorted_order[to] = order ? order[at] : at;
    }
    __syncthreads();
  }
}

// How updates are combined with what is there.
struct Add {
  template <typename N> static __device__ __forceinline__ N join(N a, N b) { return a + b; }
};
struct Multiply {
  template <typename N> static __device__ __forceinline__ N join(N a, N b) { return a * b; }
};
// A NaN stays, wherever it is.
struct Greater {
  template <typename N> static __device__ __forceinline__ N join(N a, N b) { return b > a || b != b ? b : a; }
};
struct Lesser {
  template <typename N> static __device__ __forceinline__ N join(N a, N b) { return b < a || b != b ? b : a; }
};

// What elements are combined in: sums in the wide type, rounded once; all else as elements, where products
// are rounded each.
template <typename T, typename How> struct Combined {
  typedef typename Number<T>::Lane Type;
  static __device__ __forceinline__ Type open(T x) { return Number<T>::lane(x); }
  static __device__ __forceinline__ Type join(Type a, T b) {
    return Number<T>::lane(Number<T>::narrow(How::join(a, Number<T>::lane(b))));
  }
  static __device__ __forceinline__ T close(Type x) { return Number<T>::narrow(x); }
};
template <typename T> struct Combined<T, Add> {
  typedef typename Number<T>::Wide Type;
  static __device__ __forceinline__ Type open(T x) { return (Type)Number<T>::lane(x); }
  static __device__ __forceinline__ Type join(Type a, T b) { return a + (Type)Number<T>::lane(b); }
  static __device__ __forceinline__ T close(Type x) { return Number<T>::narrow((typename Number<T>::Lane)x); }
};
// Unsigned numbers of 64 bits are compared as such.
template <> struct Combined<u64, Greater> {
  typedef u64 Type;
  static __device__ __forceinline__ u64 open(u64 x) { return x; }
  static __device__ __forceinline__ u64 join(u64 a, u64 b) { return a > b ? a : b; }
  static __device__ __forceinline__ u64 close(u64 x) { return x; }
};
template <> struct Combined<u64, Lesser> {
  typedef u64 Type;
  static __device__ __forceinline__ u64 open(u64 x) { return x; }
  static __device__ __forceinline__ u64 join(u64 a, u64 b) { return a < b ? a : b; }
  static __device__ __forceinline__ u64 close(u64 x) { return x; }
};
// The last one stays.
struct Replace {};
template <typename T> struct Combined<T, Replace> {
  typedef T Type;
  static __device__ __forceinline__ T open(T x) { return x; }
  static __device__ __forceinline__ T join(T, T b) { return b; }
  static __device__ __forceinline__ T close(T x) { return x; }
};

// Where sorted updates go: `Spread` of the backend. The output is [outer, rows, slice], the updates
// [outer, batch, count, slice], of which batch * count are sorted.
struct Spread {
  u32 updates, outer, rows, slice;
  // Elements of a row, and sorted updates.
  Divider columns, sorted;
};

// A thread for each column of each update; those of the first update of a row take all of that row.
template <typename T, typename How>
__device__ __forceinline__ void combine(const u32* keys, const u32* order, const T* updates, T* output,
                                        const Spread& shape, u32 count) {
  typedef Combined<T, How> Work;
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 line = divide(i, shape.columns), column = i - line * shape.slice;
    const u32 outer = divide(line, shape.sorted), first = line - outer * shape.updates;
    const u32 row = keys[first];
    // Not the first of its row, or an update that goes nowhere.
    if (row >= shape.rows || (first > 0u && keys[first - 1u] == row)) continue;
    u32 end = first + 1u;
    while (end < shape.updates && keys[end] == row) end++;
    const T* from = updates + (u64)outer * shape.updates * shape.slice + column;
    T* to = output + ((u64)outer * shape.rows + row) * shape.slice + column;
    typename Work::Type value = Work::open(*to);
#pragma unroll 4
    for (u32 at = first; at < end; at++) value = Work::join(value, from[(u64)order[at] * shape.slice]);
    *to = Work::close(value);
  }
}

#define VELORA_COMBINE(NAME, HOW, SUFFIX, T)                                                                       \
  extern "C" __global__ void NAME##_##SUFFIX(const u32* keys, const u32* order, const T* updates, T* output,        \
                                             Spread shape, u32 count) {                                            \
    combine<T, HOW>(keys, order, updates, output, shape, count);                                                   \
  }
#define VELORA_COMBINES(SUFFIX, T)            \
  VELORA_COMBINE(add, Add, SUFFIX, T)         \
  VELORA_COMBINE(multiply, Multiply, SUFFIX, T) \
  VELORA_COMBINE(greater, Greater, SUFFIX, T) \
  VELORA_COMBINE(lesser, Lesser, SUFFIX, T)
VELORA_FLOATS(VELORA_COMBINES)
VELORA_COMBINES(i8, i8) VELORA_COMBINES(i16, i16) VELORA_COMBINES(i32, i32) VELORA_COMBINES(i64, i64)
VELORA_COMBINES(u8, u8) VELORA_COMBINES(u16, u16) VELORA_COMBINES(u32, u32) VELORA_COMBINES(u64, u64)
#define VELORA_REPLACE(WIDTH, T) VELORA_COMBINE(replace, Replace, WIDTH, T)
VELORA_WIDTHS(VELORA_REPLACE)
VELORA_REPLACE(16, Sixteen)
