// Losses of scores [batch, classes, inner] against labels [batch, inner], and their gradients. `Element` is
// defined where this is included.
#include "common.cuh"
#include "rows.cuh"

typedef Number<Element> N;
typedef N::Lane Lane;

// `Reduction` of the launcher.
#define NONE 0u
#define MEAN 2u

// Labels and what they count.
struct Targets {
  const void* labels;
  const Element* weights;  // of the classes; may be absent
  const i64* ignored;      // where it is an input
  Report* report;
  i64 ignore;
  u64 classes;
  u32 check, short_labels, ignores, unused;
};

__device__ __forceinline__ i64 label_at(const Targets& targets, u64 place) {
  return targets.short_labels ? (i64)((const i32*)targets.labels)[place] : ((const i64*)targets.labels)[place];
}

// The class of a label and its weight; false where it is ignored, or is no class, which is reported.
__device__ __forceinline__ bool target(const Targets& targets, u64 place, u64& of_class, double& weight) {
  const i64 label = label_at(targets, place);
  const i64 ignore = targets.ignored ? *targets.ignored : targets.ignore;
  const bool ignores = targets.ignored || targets.ignores;
  of_class = (u64)label;
  weight = 0.0;
  if (ignores && label == ignore) return false;
  if (of_class >= targets.classes) {
    // The label that is ignored is part of the message: beside the place, where both have room.
    const bool packs = ignores && ignore >= -(1 << 22) && ignore < (1 << 22) - 1 && place < (1ull << 40);
    const i64 position = packs ? (i64)(place | ((u64)(ignore + (1 << 22) + 1) << 40)) : (i64)place;
    report(targets.report, targets.check, position, label);
    return false;
  }
  weight = targets.weights ? (double)N::lane(targets.weights[of_class]) : 1.0;
  return true;
}

// The loss of a label goes to the losses where they are not joined.
__device__ __forceinline__ double put(Element* losses, u64 place, bool counts, Lane log_of_class, double weight) {
  const double loss = counts ? -(double)log_of_class * weight : 0.0;
  if (losses) losses[place] = N::narrow((Lane)loss);
  return loss;
}

// Sums of a block's losses and weights, [blocks, 2].
__device__ __forceinline__ void put_sums(double loss, double weight, double* sums) {
  __shared__ double shared[32];
  loss = block_sum(loss, shared);
  weight = block_sum(weight, shared);
  if (threadIdx.x == 0u) {
    sums[2u * blockIdx.x] = loss;
    sums[2u * blockIdx.x + 1u] = weight;
  }
}

// Without places behind the classes: a warp or a block for each row; `logs` may be the scores, and be absent.
template <int V, bool WARP>
__device__ __forceinline__ void loss_rows(const Element* scores, Element* logs, Element* losses, double* sums, u64 rows,
                                          const Targets& targets) {
  __shared__ double wide[32];
  __shared__ Lane narrow[32];
  const u32 threads = WARP ? 32u : blockDim.x, thread = WARP ? threadIdx.x & 31u : threadIdx.x;
  const u32 teams = blockDim.x / threads, size = (u32)targets.classes;
  double all = 0.0, weights = 0.0;
  for (u64 number = (u64)blockIdx.x * teams + (WARP ? threadIdx.x >> 5 : 0u); number < rows; number += (u64)gridDim.x * teams) {
    Row<V, 4> row(scores + number * size, size / V, thread, threads);
    u64 of_class;
    double weight;
    bool counts = false;
    // Read before anything of the row is written.
    Lane of_label = 0;
    if (thread == 0u) {
      counts = target(targets, number, of_class, weight);
      if (counts) of_label = N::lane(row.from[of_class]);
    }
    Lane greatest = lowest(Lane());
    row.load([&](u32, const Pack<Element, V>& pack) {
#pragma unroll
      for (int e = 0; e < V; e++) greatest = max_or_nan(greatest, N::lane(pack.at[e]));
    });
    greatest = team_max<WARP>(greatest, narrow, lowest(Lane()));
    double sum = 0.0;
    row.again([&](u32, const Pack<Element, V>& pack) {
      Lane powers[V];
#pragma unroll
      for (int e = 0; e < V; e++) powers[e] = power(N::lane(pack.at[e]) - greatest);
      sum += (double)pack_sum<V>(powers);
    });
    sum = team_sum<WARP>(sum, wide);
    const Lane shift = (Lane)log(sum);
    if (thread == 0u) {
      all += put(losses, number, counts, of_label - greatest - shift, weight);
      weights += weight;
    }
    if (logs) {
      // The label's score was read by another thread, and may lie where the logarithms do.
      if (WARP) __syncwarp();
      Element* to = logs + number * size;
      row.again([&](u32 i, const Pack<Element, V>& pack) {
        Pack<Element, V> result;
#pragma unroll
        for (int e = 0; e < V; e++) result.at[e] = N::narrow(N::lane(pack.at[e]) - greatest - shift);
        store_pack(to + (u64)i * V, result);
      });
    }
  }
  put_sums(all, weights, sums);
}

// What a gradient is made of.
struct Slope {
  const Element* dy;
  const double* totals;  // of losses and weights
  const Element* added;  // may be absent
  u32 reduction, unused;
};

// (e^log - [class = label]) weight dY / the sum of weights, V elements at once: along the classes without
// places, else along the places. `logs` may be d.
template <int V, bool PLACES>
__device__ __forceinline__ void loss_grad(const Element* logs, Element* d, u64 packs, const Divisor& of_line,
                                          const Divisor& classes, const Targets& targets, const Slope& slope) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  const double total = slope.reduction == MEAN ? slope.totals[1] : 0.0;
  const double over = total != 0.0 ? total : 1.0;
  const double of_all = slope.reduction == NONE ? 0.0 : (double)N::lane(slope.dy[0]);
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
    // A line has the classes of a label, or the places of a class.
    const u64 line = quotient(i, of_line), first = (i - line * of_line.divisor) * V;
    const u64 entry = PLACES ? quotient(line, classes) : line;
    const u64 of_line_class = PLACES ? line - entry * classes.divisor : 0;
    const u64 place = PLACES ? entry * of_line.divisor * V + first : line;
    const Pack<Element, V> pack = load_pack<V>(logs + i * V);
    Pack<Element, V> result;
    u64 of_class = 0;
    Lane factor = 0;
    bool counts = false;
#pragma unroll
    for (int e = 0; e < V; e++) {
      if (PLACES || e == 0) {
        double weight;
        counts = target(targets, place + e, of_class, weight);
        const double dy = slope.reduction == NONE ? (double)N::lane(slope.dy[place + e]) : of_all;
        factor = (Lane)(dy * weight / over);
      }
      const Lane chance = power(N::lane(pack.at[e]));
      const bool is_label = (PLACES ? of_line_class : first + e) == of_class;
      result.at[e] = N::narrow(!counts ? (Lane)0 : is_label ? (chance - (Lane)1) * factor : chance * factor);
    }
    if (slope.added) {
      const Pack<Element, V> added = load_pack<V>(slope.added + i * V);
#pragma unroll
      for (int e = 0; e < V; e++) result.at[e] = N::narrow(N::lane(result.at[e]) + N::lane(added.at[e]));
    }
    store_pack(d + i * V, result);
  }
}

#define LOSS_KERNELS(V)                                                                                                 \
  extern "C" __global__ void __launch_bounds__(512, 1) loss_warps_##V(const Element* scores, Element* logs, Element* losses, \
                                                                   double* sums, u64 rows, Targets targets) {           \
    loss_rows<V, true>(scores, logs, losses, sums, rows, targets);                                                      \
  }                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(512, 1) loss_blocks_##V(const Element* scores, Element* logs,               \
                                                                    Element* losses, double* sums, u64 rows,            \
                                                                    Targets targets) {                                  \
    loss_rows<V, false>(scores, logs, losses, sums, rows, targets);                                                     \
  }                                                                                                                     \
  extern "C" __global__ void loss_grad_##V(const Element* logs, Element* d, u64 packs, Divisor of_line, Divisor classes, \
                                           Targets targets, Slope slope) {                                              \
    loss_grad<V, false>(logs, d, packs, of_line, classes, targets, slope);                                              \
  }                                                                                                                     \
  extern "C" __global__ void loss_grad_places_##V(const Element* logs, Element* d, u64 packs, Divisor of_line,          \
                                                  Divisor classes, Targets targets, Slope slope) {                      \
    loss_grad<V, true>(logs, d, packs, of_line, classes, targets, slope);                                               \
  }
#if ELEMENT_BYTES == 2
LOSS_KERNELS(8)
#elif ELEMENT_BYTES == 4
LOSS_KERNELS(4)
#else
LOSS_KERNELS(2)
#endif
LOSS_KERNELS(1)

// Any places, and scores that are logarithms already: a thread for each label.
extern "C" __global__ void loss_places(const Element* scores, Element* logs, Element* losses, double* sums, u64 labels,
                                       Divisor inner, Targets targets, u32 softmax) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  double all = 0.0, weights = 0.0;
  for (u64 place = (u64)blockIdx.x * blockDim.x + threadIdx.x; place < labels; place += stride) {
    const u64 entry = quotient(place, inner), step = inner.divisor;
    const u64 start = entry * targets.classes * step + (place - entry * step);
    Lane greatest = 0, shift = 0;
    if (softmax) {
      greatest = lowest(Lane());
      for (u64 c = 0; c < targets.classes; c++) greatest = max_or_nan(greatest, N::lane(scores[start + c * step]));
      double sum = 0.0;
      for (u64 c = 0; c < targets.classes; c++) sum += (double)power(N::lane(scores[start + c * step]) - greatest);
      shift = (Lane)log(sum);
    }
    u64 of_class;
    double weight;
    const bool counts = target(targets, place, of_class, weight);
    const Lane of_label = counts ? N::lane(scores[start + of_class * step]) : (Lane)0;
    all += put(losses, place, counts, softmax ? of_label - greatest - shift : of_label, weight);
    weights += weight;
    if (logs)
      for (u64 c = 0; c < targets.classes; c++)
        logs[start + c * step] = N::narrow(N::lane(scores[start + c * step]) - greatest - shift);
  }
  put_sums(all, weights, sums);
}

// The sums of weights, for a gradient; all labels are checked.
extern "C" __global__ void loss_weights(double* sums, u64 labels, Targets targets) {
  const u64 stride = (u64)gridDim.x * blockDim.x;
  double weights = 0.0;
  for (u64 place = (u64)blockIdx.x * blockDim.x + threadIdx.x; place < labels; place += stride) {
    u64 of_class;
    double weight;
    target(targets, place, of_class, weight);
    weights += weight;
  }
  put_sums(0.0, weights, sums);
}

// Joins the sums of blocks: to `totals`, and to the loss where there is one; one block.
extern "C" __global__ void join_losses(const double* sums, u32 count, double* totals, Element* loss, u32 reduction) {
  __shared__ double shared[32];
  double all = 0.0, weights = 0.0;
  for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
    all += sums[2u * i];
    weights += sums[2u * i + 1u];
  }
  all = block_sum(all, shared);
  weights = block_sum(weights, shared);
  if (threadIdx.x == 0u) {
    if (totals) {
      totals[0] = all;
      totals[1] = weights;
    }
    if (loss) loss[0] = N::narrow((Lane)(reduction == MEAN && weights != 0.0 ? all / weights : all));
  }
}
