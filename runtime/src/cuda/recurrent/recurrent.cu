// The gates of recurrent layers, a step at a time: products come from the library, and one kernel per step does
// the rest. A thread has one feature of one sequence.
#include "common.cuh"

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float squash(float x) { return tanhf(x); }
__device__ __forceinline__ double squash(double x) { return tanh(x); }
__device__ __forceinline__ float log_of_one_and(float x) { return log1pf(x); }
__device__ __forceinline__ double log_of_one_and(double x) { return log1p(x); }

template <typename T> __device__ __forceinline__ T logistic(T x) {
  const T e = exponential(x < (T)0 ? x : -x);
  return (x < (T)0 ? e : (T)1) / ((T)1 + e);
}

#define SIGMOID 0u
#define TANH 1u
#define RELU 2u
#define AFFINE 3u
#define LEAKY_RELU 4u
#define THRESHOLDED_RELU 5u
#define SCALED_TANH 6u
#define HARD_SIGMOID 7u
#define ELU 8u
#define SOFTSIGN 9u
#define SOFTPLUS 10u

// `Function` of the backend.
struct Function { u32 kind; float alpha, beta; };

template <typename T> __device__ __forceinline__ T apply(const Function& function, T x) {
  const T a = (T)function.alpha, b = (T)function.beta;
  switch (function.kind) {
    case SIGMOID: return logistic(x);
    case TANH: return squash(x);
    case RELU: return x > (T)0 ? x : (T)0;
    case AFFINE: return a * x + b;
    case LEAKY_RELU: return x < (T)0 ? a * x : x;
    case THRESHOLDED_RELU: return x < a ? (T)0 : x;
    case SCALED_TANH: return a * squash(b * x);
    case HARD_SIGMOID: {
      const T line = a * x + b;
      const T below = line < (T)1 ? line : (T)1;
      return below > (T)0 ? below : (T)0;
    }
    case ELU: return x < (T)0 ? a * (exponential(x) - (T)1) : x;
    case SOFTSIGN: return x / ((T)1 + (x > -x ? x : -x));
    default: {
      const T size = x > -x ? x : -x;
      return (x > (T)0 ? x : (T)0) + log_of_one_and(exponential(-size));
    }
  }
}

// What is the same for all features of a step: `Step` of the backend.
struct Step {
  // Elements between the sequences in the gates, and in all states.
  u64 next_row, next_state;
  u32 batch, hidden;
  // Columns of the recurrent product.
  u32 width;
  u32 time;
  // Whether the gates are an output; whether the cell's own variant is asked for.
  u32 keeps_gates, variant;
  u32 clips;
  float clip;
  Function f, g, h;
};

template <typename T> __device__ __forceinline__ T activate(const Step& step, const Function& function, T x) {
  if (step.clips) {
    const T clip = (T)step.clip;
    x = x > clip ? clip : x < -clip ? -clip : x;
  }
  return apply(function, x);
}

// The number of a gate of `gates` in all, in a row of their bias: that of the input's side, or of both.
template <typename T>
__device__ __forceinline__ T input_bias(const T* bias, u32 gate, const Step& step, u32 j) {
  return bias ? bias[gate * step.hidden + j] : (T)0;
}
template <typename T>
__device__ __forceinline__ T state_bias(const T* bias, u32 gates, u32 gate, const Step& step, u32 j) {
  return bias ? bias[(gates + gate) * step.hidden + j] : (T)0;
}

__device__ __forceinline__ bool runs(const i32* lengths, u32 sequence, const Step& step) {
  return !lengths || (i32)step.time < lengths[sequence];
}

// Calls BODY for every sequence b and feature j; `at` is their place in a dense state.
#define FOR_FEATURES(BODY)                                                                                        \
  const u32 count = step.batch * step.hidden, stride = gridDim.x * blockDim.x;                                    \
  for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += stride) {                                \
    const u32 b = at / step.hidden, j = at - b * step.hidden;                                                     \
    BODY                                                                                                          \
  }

// Every cell takes the same operands: what the input gives to the gates, the products of the state, bias,
// peepholes, lengths, the states, and where they go.
#define OPERANDS(T)                                                                                               \
  T *gates, const T *product, const T *late, const T *bias, const T *peepholes, const i32 *lengths, T *h, T *c,     \
      T *all_h, T *all_c, Step step

template <typename T> __device__ __forceinline__ void rnn(OPERANDS(T)) {
  FOR_FEATURES({
    T* gate = gates + b * step.next_row + j;
    T x = *gate + (input_bias(bias, 0, step, j) + state_bias(bias, 1, 0, step, j)) + product[b * step.width + j];
    const bool is_running = runs(lengths, b, step);
    if (is_running) {
      x = activate(step, step.f, x);
      h[at] = x;
    }
    if (step.keeps_gates) *gate = x;
    if (all_h) all_h[b * step.next_state + j] = is_running ? x : (T)0;
  })
}

// The gates i, o, f and c.
template <typename T> __device__ __forceinline__ void lstm(OPERANDS(T)) {
  FOR_FEATURES({
    T* row = gates + b * step.next_row + j;
    const T* own = product + (u64)b * step.width + j;
    T x[4];
    for (u32 gate = 0; gate < 4u; gate++) {
      x[gate] = row[gate * step.hidden] + (input_bias(bias, gate, step, j) + state_bias(bias, 4, gate, step, j)) +
                own[gate * step.hidden];
    }
    const bool is_running = runs(lengths, b, step);
    T cell = c[at];
    T state = h[at];
    if (is_running) {
      if (peepholes) x[0] += peepholes[j] * cell;
      x[0] = activate(step, step.f, x[0]);
      if (step.variant) {
        x[2] = (T)1 - x[0];
      } else {
        if (peepholes) x[2] += peepholes[2 * step.hidden + j] * cell;
        x[2] = activate(step, step.f, x[2]);
      }
      x[3] = activate(step, step.g, x[3]);
      cell = x[2] * cell + x[0] * x[3];
      if (peepholes) x[1] += peepholes[step.hidden + j] * cell;
      x[1] = activate(step, step.f, x[1]);
      state = x[1] * apply(step.h, cell);
      c[at] = cell;
      h[at] = state;
    }
    if (step.keeps_gates) {
      for (u32 gate = 0; gate < 4u; gate++) row[gate * step.hidden] = x[gate];
    }
    if (all_h) all_h[b * step.next_state + j] = is_running ? state : (T)0;
    if (all_c) all_c[b * step.next_state + j] = is_running ? cell : (T)0;
  })
}

// The reset state of a GRU whose reset gate is applied before the product; `c` is where it goes.
template <typename T> __device__ __forceinline__ void gru_reset(OPERANDS(T)) {
  FOR_FEATURES({
    const T r = gates[b * step.next_row + step.hidden + j] +
                (input_bias(bias, 1, step, j) + state_bias(bias, 3, 1, step, j)) +
                product[b * step.width + step.hidden + j];
    c[at] = h[at] * activate(step, step.f, r);
  })
}

// The gates z, r and h; `variant` where the reset gate is applied behind the product of the gate h.
template <typename T> __device__ __forceinline__ void gru(OPERANDS(T)) {
  FOR_FEATURES({
    T* row = gates + b * step.next_row + j;
    const T* own = product + (u64)b * step.width + j;
    T z = row[0] + (input_bias(bias, 0, step, j) + state_bias(bias, 3, 0, step, j)) + own[0];
    T r = row[step.hidden] + (input_bias(bias, 1, step, j) + state_bias(bias, 3, 1, step, j)) + own[step.hidden];
    const T late_bias = state_bias(bias, 3, 2, step, j);
    T x = row[2 * step.hidden] + input_bias(bias, 2, step, j);
    if (!step.variant) x += late_bias;
    const bool is_running = runs(lengths, b, step);
    T state = h[at];
    if (is_running) {
      z = activate(step, step.f, z);
      r = activate(step, step.f, r);
      x += step.variant ? r * (own[2 * step.hidden] + late_bias) : late[at];
      x = activate(step, step.g, x);
      state = ((T)1 - z) * x + z * state;
      h[at] = state;
    }
    if (step.keeps_gates) {
      row[0] = z;
      row[step.hidden] = r;
      row[2 * step.hidden] = x;
    }
    if (all_h) all_h[b * step.next_state + j] = is_running ? state : (T)0;
  })
}

// Rows of `columns` elements from one layout to another; zeros where there is nothing to be copied.
template <typename T>
__device__ __forceinline__ void copy_rows(const T* from, T* to, u64 from_step, u64 to_step, u32 columns, u32 count) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const u32 row = i / columns, column = i - row * columns;
    to[row * to_step + column] = from ? from[row * from_step + column] : (T)0;
  }
}

extern "C" __global__ void check_lengths(const i32* lengths, u32 count, i32 steps, Report* failure, u32 check) {
  const u32 stride = gridDim.x * blockDim.x;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    if (lengths[i] < 0 || lengths[i] > steps) report(failure, check, (i64)i, (i64)lengths[i]);
  }
}

// From the gradients of a step's states to those of what its gates get, and of the cell before.
template <typename T>
__device__ __forceinline__ void lstm_gradient(const T* gates, const T* cells, const T* before, const T* dy, const T* dh,
                                              T* dc, T* da, u32 batch, u32 hidden) {
  const u32 count = batch * hidden, stride = gridDim.x * blockDim.x;
  for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += stride) {
    const u32 b = at / hidden, j = at - b * hidden;
    const u64 row = (u64)b * 4 * hidden + j;
    const T i = gates[row], o = gates[row + hidden], f = gates[row + 2 * (u64)hidden], g = gates[row + 3 * (u64)hidden];
    const T of_state = dh[at] + (dy ? dy[at] : (T)0);
    const T squashed = squash(cells[at]);
    const T d = dc[at] + of_state * o * ((T)1 - squashed * squashed);
    const T earlier = before ? before[at] : (T)0;
    da[row] = d * g * i * ((T)1 - i);
    da[row + hidden] = of_state * squashed * o * ((T)1 - o);
    da[row + 2 * (u64)hidden] = d * earlier * f * ((T)1 - f);
    da[row + 3 * (u64)hidden] = d * i * ((T)1 - g * g);
    dc[at] = d * f;
  }
}

// The gates z and h of a GRU's step, and the part of the state's gradient that the gate z lets through.
template <typename T>
__device__ __forceinline__ void gru_gradient(const T* gates, const T* before, const T* dy, T* dh, T* da, u32 batch,
                                             u32 hidden) {
  const u32 count = batch * hidden, stride = gridDim.x * blockDim.x;
  for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += stride) {
    const u32 b = at / hidden, j = at - b * hidden;
    const u64 row = (u64)b * 3 * hidden + j;
    const T z = gates[row], h = gates[row + 2 * (u64)hidden];
    const T d = dh[at] + (dy ? dy[at] : (T)0);
    const T earlier = before ? before[at] : (T)0;
    da[row] = d * (earlier - h) * z * ((T)1 - z);
    da[row + 2 * (u64)hidden] = d * ((T)1 - z) * ((T)1 - h * h);
    dh[at] = d * z;
  }
}

// The gate r, with `product` what the reset gate multiplied (linear before reset), or else the gradient of what
// it made.
template <typename T>
__device__ __forceinline__ void gru_reset_gradient(const T* gates, const T* before, const T* product,
                                                   const T* late_bias, T* dh, T* da, T* extra, u32 linear, u32 batch,
                                                   u32 hidden) {
  const u32 count = batch * hidden, stride = gridDim.x * blockDim.x;
  for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += stride) {
    const u32 b = at / hidden, j = at - b * hidden;
    const u64 row = (u64)b * 3 * hidden + j;
    const T r = gates[row + hidden];
    T dr;
    if (linear) {
      const T late = product[at] + (late_bias ? late_bias[j] : (T)0);
      const T of_gate = da[row + 2 * (u64)hidden];
      extra[at] = of_gate * r;
      dr = of_gate * late;
    } else {
      const T earlier = before ? before[at] : (T)0;
      extra[at] = r * earlier;
      dh[at] += product[at] * r;
      dr = product[at] * earlier;
    }
    da[row + hidden] = dr * r * ((T)1 - r);
  }
}

// The sums of columns in double precision: a block of 32 x 8 threads for 32 columns.
template <typename T>
__device__ __forceinline__ void column_sums(const T* matrix, T* sums, u32 rows, u32 columns) {
  __shared__ double parts[8][33];
  const u32 x = threadIdx.x & 31u, y = threadIdx.x >> 5;
  for (u32 first = blockIdx.x * 32u; first < columns; first += gridDim.x * 32u) {
    const u32 column = first + x;
    double sum = 0.0;
    if (column < columns) {
      for (u32 row = y; row < rows; row += 8u) sum += (double)matrix[(u64)row * columns + column];
    }
    parts[y][x] = sum;
    __syncthreads();
    if (y == 0u && column < columns) {
#pragma unroll
      for (u32 other = 1; other < 8u; other++) sum += parts[other][x];
      sums[column] = (T)sum;
    }
    __syncthreads();
  }
}

#define VELORA_CELL(NAME, SUFFIX, T)                                                                    \
  extern "C" __global__ void NAME##_##SUFFIX(OPERANDS(T)) {                                             \
    NAME<T>(gates, product, late, bias, peepholes, lengths, h, c, all_h, all_c, step);                  \
  }
#define VELORA_RECURRENT(SUFFIX, T)                                                                                    \
  VELORA_CELL(rnn, SUFFIX, T) VELORA_CELL(lstm, SUFFIX, T) VELORA_CELL(gru_reset, SUFFIX, T) VELORA_CELL(gru, SUFFIX, T) \
  extern "C" __global__ void copy_rows_##SUFFIX(const T* from, T* to, u64 from_step, u64 to_step, u32 columns,           \
                                                u32 count) {                                                           \
    copy_rows<T>(from, to, from_step, to_step, columns, count);                                                        \
  }                                                                                                                    \
  extern "C" __global__ void lstm_gradient_##SUFFIX(const T* gates, const T* cells, const T* before, const T* dy,        \
                                                    const T* dh, T* dc, T* da, u32 batch, u32 hidden) {                \
    lstm_gradient<T>(gates, cells, before, dy, dh, dc, da, batch, hidden);                                             \
  }                                                                                                                    \
  extern "C" __global__ void gru_gradient_##SUFFIX(const T* gates, const T* before, const T* dy, T* dh, T* da,           \
                                                   u32 batch, u32 hidden) {                                            \
    gru_gradient<T>(gates, before, dy, dh, da, batch, hidden);                                                         \
  }                                                                                                                    \
  extern "C" __global__ void gru_reset_gradient_##SUFFIX(const T* gates, const T* before, const T* product,              \
                                                         const T* late_bias, T* dh, T* da, T* extra, u32 linear,       \
                                                         u32 batch, u32 hidden) {                                      \
    gru_reset_gradient<T>(gates, before, product, late_bias, dh, da, extra, linear, batch, hidden);                    \
  }                                                                                                                    \
  extern "C" __global__ void column_sums_##SUFFIX(const T* matrix, T* sums, u32 rows, u32 columns) {                     \
    column_sums<T>(matrix, sums, rows, columns);                                                                       \
  }
VELORA_RECURRENT(f32, float)
VELORA_RECURRENT(f64, double)
