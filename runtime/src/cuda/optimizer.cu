// The global norm, and updates of parameters from their gradients: whole ones, and v (x) P.
#include "common.cuh"

// What an optimiser needs of a step, rounded once by the host; which of them are used depends on the rule.
struct Numbers {
  float scale;         // of gradients, before all else
  float decay;         // added to the gradient, times the parameter
  float momentum;
  float step;          // the learning rate (over the first bias correction), negative
  float keep;          // what the parameter keeps of itself
  float fresh_mean;    // one less the first beta
  float beta2;
  float fresh_square;  // one less the second beta
  float root;          // of the second bias correction
  float epsilon;
};

// Sums of squares of n elements in doubles, one per block; the order depends on n and the grid only.
extern "C" __global__ void partial_squares(const float* g, u64 n, double* partials) {
  __shared__ double shared[32];
  double sum = 0.0;
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) sum += (double)g[i] * (double)g[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0u) partials[blockIdx.x] = sum;
}

// Adds the partial sums to the total; one block.
extern "C" __global__ void add_squares(const double* partials, u32 count, double* total) {
  __shared__ double shared[32];
  double sum = 0.0;
  for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0u) *total += sum;
}

// How a weight is cut: `Factor` of the runtime. An element of W belongs to feature d and output o.
struct Cut {
  u64 features, outputs, groups, size;  // D, O, G, M = ceil(D / G)
  u32 last, shared;                     // whether W is [O, D]; whether all groups have one direction
};

// The sum of squares of v (x) P over the groups that hold features: of P's squares times those of their
// direction.
extern "C" __global__ void partial_factored_squares(const float* p, const float* v, Cut cut, double* partials) {
  __shared__ double shared[32];
  const u64 occupied = (cut.features + cut.size - 1) / cut.size;
  double total = 0.0;
  for (u64 group = blockIdx.x; group < occupied; group += gridDim.x) {
    const u64 first = group * cut.size;
    const u64 size = first + cut.size <= cut.features ? cut.size : cut.features - first;
    const float* direction = v + (cut.shared ? 0 : first);
    double norm = 0.0, sum = 0.0;
    for (u64 i = threadIdx.x; i < size; i += blockDim.x) norm += (double)direction[i] * (double)direction[i];
    for (u64 o = threadIdx.x; o < cut.outputs; o += blockDim.x) {
      const double x = (double)(cut.last ? p[o * cut.groups + group] : p[group * cut.outputs + o]);
      sum += x * x;
    }
    norm = block_sum(norm, shared);
    sum = block_sum(sum, shared);
    total += norm * sum;
  }
  if (threadIdx.x == 0u) partials[blockIdx.x] = total;
}

// Updates of one element; `s` and `t` are its state. The order of operations is that of the CPU.
struct Sgd {
  static __device__ __forceinline__ void apply(const Numbers& k, float& w, float g, float&, float&) {
    g = g * k.scale;
    if (k.decay != 0.f) g = g + k.decay * w;
    w = w + k.step * g;
  }
};
template <bool NESTEROV> struct Momentum {
  static __device__ __forceinline__ void apply(const Numbers& k, float& w, float g, float& d, float&) {
    g = g * k.scale;
    if (k.decay != 0.f) g = g + k.decay * w;
    d = k.momentum * d + g;
    w = w + k.step * (NESTEROV ? g + k.momentum * d : d);
  }
};
struct Adam {
  static __device__ __forceinline__ void apply(const Numbers& k, float& w, float g, float& m, float& s) {
    g = g * k.scale;
    if (k.decay != 0.f) g = g + k.decay * w;
    m = m + k.fresh_mean * (g - m);
    s = k.beta2 * s + k.fresh_square * (g * g);
    const float size = sqrtf(s) / k.root + k.epsilon;
    w = w * k.keep + k.step * (m / size);
  }
};

// Four elements at once; buffers start at multiples of 64 bytes.
template <typename RULE, int STATES>
__device__ __forceinline__ void update(const Numbers* numbers, float* w, const float* g, float* s, float* t, u64 n) {
  const Numbers k = *numbers;
  const u64 stride = (u64)gridDim.x * blockDim.x;
  const u64 start = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  const u64 fours = n / 4;
  for (u64 i = start; i < fours; i += stride) {
    float4 w4 = reinterpret_cast<float4*>(w)[i];
    const float4 g4 = reinterpret_cast<const float4*>(g)[i];
    float4 s4 = make_float4(0.f, 0.f, 0.f, 0.f), t4 = s4;
    if (STATES > 0) s4 = reinterpret_cast<float4*>(s)[i];
    if (STATES > 1) t4 = reinterpret_cast<float4*>(t)[i];
    RULE::apply(k, w4.x, g4.x, s4.x, t4.x);
    RULE::apply(k, w4.y, g4.y, s4.y, t4.y);
    RULE::apply(k, w4.z, g4.z, s4.z, t4.z);
    RULE::apply(k, w4.w, g4.w, s4.w, t4.w);
    reinterpret_cast<float4*>(w)[i] = w4;
    if (STATES > 0) reinterpret_cast<float4*>(s)[i] = s4;
    if (STATES > 1) reinterpret_cast<float4*>(t)[i] = t4;
  }
  for (u64 i = fours * 4 + start; i < n; i += stride) {
    float wi = w[i], si = STATES > 0 ? s[i] : 0.f, ti = STATES > 1 ? t[i] : 0.f;
    RULE::apply(k, wi, g[i], si, ti);
    w[i] = wi;
    if (STATES > 0) s[i] = si;
    if (STATES > 1) t[i] = ti;
  }
}

#define VELORA_UPDATE(NAME, RULE, STATES)                                                                     \
  extern "C" __global__ void NAME(const Numbers* numbers, float* w, const float* g, float* s, float* t, u64 n) { \
    update<RULE, STATES>(numbers, w, g, s, t, n);                                                              \
  }
VELORA_UPDATE(sgd, Sgd, 0)
VELORA_UPDATE(momentum, Momentum<false>, 1)
VELORA_UPDATE(nesterov, Momentum<true>, 1)
VELORA_UPDATE(adam, Adam, 2)

// The state of a factored gradient, of P's shape, before the parameter is swept.
extern "C" __global__ void momentum_state(const Numbers* numbers, const float* p, float* d, u64 n) {
  const Numbers k = *numbers;
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) d[i] = k.momentum * d[i] + p[i] * k.scale;
}
extern "C" __global__ void adam_state(const Numbers* numbers, const float* p, float* m, float* s, u64 n) {
  const Numbers k = *numbers;
  const u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
    const float g = p[i] * k.scale;
    m[i] = m[i] + k.fresh_mean * (g - m[i]);
    s[i] = k.beta2 * s[i] + k.fresh_square * (g * g);
  }
}

// One sweep over W, which is read and written once. x and y are of P's shape: what the rule needs of the
// gradient or of its state.
struct FactoredSgd {
  static __device__ __forceinline__ float apply(const Numbers& k, float w, float v, float x, float) {
    float g = v * (x * k.scale);
    if (k.decay != 0.f) g = g + k.decay * w;
    return w + k.step * g;
  }
};
struct FactoredMomentum {
  static __device__ __forceinline__ float apply(const Numbers& k, float w, float v, float x, float) {
    return w + k.step * (v * x);
  }
};
struct FactoredNesterov {
  static __device__ __forceinline__ float apply(const Numbers& k, float w, float v, float x, float y) {
    return w + k.step * (v * (x * k.scale + k.momentum * y));
  }
};
struct FactoredAdam {
  static __device__ __forceinline__ float apply(const Numbers& k, float w, float v, float x, float y) {
    return w * k.keep + k.step * (v * x / (fabsf(v) * (sqrtf(y) / k.root) + k.epsilon));
  }
};

// A block takes rows of W in turns, its threads the columns: of [D, O] a row is a feature, and x and y have
// an element per column; of [O, D] a row is an output, and neighbours in a group share theirs.
template <typename RULE>
__device__ __forceinline__ void sweep(const Numbers* numbers, float* w, const float* v, const float* x, const float* y, Cut cut) {
  const Numbers k = *numbers;
  const u64 rows = cut.last ? cut.outputs : cut.features, columns = cut.last ? cut.features : cut.outputs;
  for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
    float* line = w + row * columns;
    if (cut.last) {
      for (u64 d = threadIdx.x; d < columns; d += blockDim.x) {
        const u64 group = d / cut.size, at = row * cut.groups + group;
        line[d] = RULE::apply(k, line[d], v[cut.shared ? d - group * cut.size : d], x[at], y[at]);
      }
    } else {
      const u64 group = row / cut.size;
      const float direction = v[cut.shared ? row - group * cut.size : row];
      for (u64 o = threadIdx.x; o < columns; o += blockDim.x) {
        const u64 at = group * columns + o;
        line[o] = RULE::apply(k, line[o], direction, x[at], y[at]);
      }
    }
  }
}

#define VELORA_SWEEP(NAME, RULE)                                                                                \
  extern "C" __global__ void NAME(const Numbers* numbers, float* w, const float* v, const float* x, const float* y, \
                                  Cut cut) {                                                                    \
    sweep<RULE>(numbers, w, v, x, y, cut);                                                                      \
  }
VELORA_SWEEP(factored_sgd, FactoredSgd)
VELORA_SWEEP(factored_momentum, FactoredMomentum)
VELORA_SWEEP(factored_nesterov, FactoredNesterov)
VELORA_SWEEP(factored_adam, FactoredAdam)
