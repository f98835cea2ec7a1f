// Sums kept in a buffer. `Element` is the buffer's type, `Added` that of what is added; a pack has PACK of each.
#include "common.cuh"

typedef Number<Element> N;

// What the sum becomes, by the flag.
#define ADD 0u
#define OVERWRITE 1u
#define GATED 2u

// `sum` may be the buffer, and what is added as well.
__device__ __forceinline__ Element joined(u32 rule, Element buffer, Added value, bool set) {
  if (rule == OVERWRITE && set) return N::narrow(Number<Added>::lane(value));
  if (rule == GATED && !set) return buffer;
  return N::narrow(N::lane(buffer) + Number<Added>::lane(value));
}

extern "C" __global__ void accumulate(const Element* buffer, const Added* value, const u8* flag, Element* sum, u64 elements,
                                      u32 rule) {
  const bool set = flag && *flag != 0;
  const u64 stride = (u64)gridDim.x * blockDim.x, start = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  const u64 packs = elements / PACK;
  for (u64 i = start; i < packs; i += stride) {
    const Pack<Element, PACK> a = load_pack<PACK>(buffer + i * PACK);
    const Pack<Added, PACK> b = load_pack<PACK>(value + i * PACK);
    Pack<Element, PACK> result;
#pragma unroll
    for (int e = 0; e < PACK; e++) result.at[e] = joined(rule, a.at[e], b.at[e], set);
    store_pack(sum + i * PACK, result);
  }
  for (u64 i = packs * PACK + start; i < elements; i += stride) sum[i] = joined(rule, buffer[i], value[i], set);
}
