// Integer arithmetic and conversions, elementwise, for comparison with the host's.
typedef signed char s8;
typedef unsigned char u8;
typedef short s16;
typedef unsigned short u16;
typedef int s32;
typedef unsigned u32;
typedef long long s64;
typedef unsigned long long u64;
#define ELEMENTWISE(name, T, R, expression)                                                        \
  extern "C" __global__ void name(const T* a, const T* b, R* out, unsigned n) {                    \
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;                                      \
    if (i < n) {                                                                                   \
      const T x = a[i], y = b[i];                                                                  \
      (void)y;                                                                                     \
      out[i] = expression;                                                                         \
    }                                                                                              \
  }
#define COMPARE (x < y) + 2 * (x <= y) + 4 * (x == y) + 8 * (x != y) + 16 * (x > y) + 32 * (x >= y)
#define ALL(T)                                                                                     \
  ELEMENTWISE(T##_add, T, T, x + y)                                                                \
  ELEMENTWISE(T##_sub, T, T, x - y)                                                                \
  ELEMENTWISE(T##_mul, T, T, x * y)                                                                \
  ELEMENTWISE(T##_div, T, T, x / (y | 1))                                                          \
  ELEMENTWISE(T##_rem, T, T, x % (y | 1))                                                          \
  ELEMENTWISE(T##_min, T, T, x < y ? x : y)                                                        \
  ELEMENTWISE(T##_max, T, T, x > y ? x : y)                                                        \
  ELEMENTWISE(T##_and, T, T, x & y)                                                                \
  ELEMENTWISE(T##_or, T, T, x | y)                                                                 \
  ELEMENTWISE(T##_xor, T, T, x ^ y)                                                                \
  ELEMENTWISE(T##_not, T, T, ~x)                                                                   \
  ELEMENTWISE(T##_neg, T, T, -x)                                                                   \
  ELEMENTWISE(T##_shl, T, T, x << (y & 7))                                                         \
  ELEMENTWISE(T##_shr, T, T, x >> (y & 7))                                                         \
  ELEMENTWISE(T##_mad, T, T, x * y + x)                                                            \
  ELEMENTWISE(T##_seventh, T, T, x / 7)                                                            \
  ELEMENTWISE(T##_compare, T, int, COMPARE)                                                        \
  ELEMENTWISE(T##_to_f32, T, float, (float)x)                                                      \
  ELEMENTWISE(T##_to_f64, T, double, (double)x)                                                    \
  ELEMENTWISE(T##_to_s8, T, s8, (s8)x)                                                             \
  ELEMENTWISE(T##_to_u16, T, u16, (u16)x)                                                          \
  ELEMENTWISE(T##_to_u32, T, u32, (u32)x)                                                          \
  ELEMENTWISE(T##_to_s64, T, s64, (s64)x)
ALL(s8)
ALL(u8)
ALL(s16)
ALL(u16)
ALL(s32)
ALL(u32)
ALL(s64)
ALL(u64)

ELEMENTWISE(mulhi, s32, s32, __mulhi(x, y))
ELEMENTWISE(umulhi, u32, u32, __umulhi(x, y))
ELEMENTWISE(mul64hi, s64, s64, __mul64hi(x, y))
ELEMENTWISE(umul64hi, u64, u64, __umul64hi(x, y))
ELEMENTWISE(wide, s32, s64, (s64)x * y + y)
ELEMENTWISE(uwide, u32, u64, (u64)x * y + 7)
ELEMENTWISE(popc, u32, s32, __popc(x) + 100 * __popcll((u64)x << 32 | y))
ELEMENTWISE(clz, s32, s32, __clz(x) + 100 * __clzll((s64)x << 32 | (u32)y))
ELEMENTWISE(ffs, s32, s32, __ffs(x))
ELEMENTWISE(brev, u32, u32, __brev(x))
ELEMENTWISE(brevll, u64, u64, __brevll(x))
ELEMENTWISE(perm, u32, u32, __byte_perm(x, y, 0x5140))
ELEMENTWISE(funnel_l, u32, u32, __funnelshift_l(x, y, y))
ELEMENTWISE(funnel_rc, u32, u32, __funnelshift_rc(x, y, y))
ELEMENTWISE(rotate, u32, u32, x << 7 | x >> 25)
ELEMENTWISE(sad, s32, u32, __sad(x >> 2, y >> 2, 3))
ELEMENTWISE(mul24, s32, s32, __mul24(x, y))
ELEMENTWISE(field, s32, s32, (x << 20) >> 25)
ELEMENTWISE(f32_to_s32, float, s32, (s32)x)
ELEMENTWISE(f32_to_u32, float, u32, (u32)x)
ELEMENTWISE(f32_to_s64, float, s64, (s64)x)
ELEMENTWISE(f32_to_u64, float, u64, (u64)x)
ELEMENTWISE(f64_to_s32, double, s32, (s32)x)
ELEMENTWISE(f64_to_u64, double, u64, (u64)x)
ELEMENTWISE(f64_to_f32, double, float, (float)x)
ELEMENTWISE(f64_to_f32_rz, double, float, __double2float_rz(x))
ELEMENTWISE(f64_to_f32_ru, double, float, __double2float_ru(x))
ELEMENTWISE(s32_to_f32_rz, s32, float, __int2float_rz(x))
ELEMENTWISE(s32_to_f32_ru, s32, float, __int2float_ru(x))
ELEMENTWISE(u64_to_f32_rd, u64, float, __ull2float_rd(x))
ELEMENTWISE(s64_to_f64_rz, s64, double, __ll2double_rz(x))
ELEMENTWISE(f32_to_s32_rn, float, s32, __float2int_rn(x))
ELEMENTWISE(f32_to_s32_rd, float, s32, __float2int_rd(x))

// Forms that C++ has no words for.
#define ASM(name, text, ...)                                                                       \
  extern "C" __global__ void asm_##name(const u32* a, const u32* b, u32* out, unsigned n) {        \
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;                                      \
    if (i < n) {                                                                                   \
      u32 r;                                                                                       \
      asm(text : "=r"(r) : "r"(a[i]), "r"(b[i]));                                                  \
      out[i] = r;                                                                                  \
    }                                                                                              \
  }
ASM(bfe_u, "bfe.u32 %0, %1, %2, 9;")
ASM(bfe_s, "bfe.s32 %0, %1, %2, 9;")
ASM(bfi, "bfi.b32 %0, %1, %2, 5, 12;")
ASM(lop3_xor, "lop3.b32 %0, %1, %2, 0x12345678, 0x96;")
ASM(lop3_pick, "lop3.b32 %0, %1, %2, 0x0ff0f00f, 0xca;")
ASM(prmt_f4e, "prmt.b32.f4e %0, %1, %2, 3;")
ASM(prmt_sign, "prmt.b32 %0, %1, %2, 0xfb30;")
ASM(slct, "slct.s32.s32 %0, %1, 77, %2;")
ASM(mad_hi, "mad.hi.u32 %0, %1, %2, 5;")
ASM(two_predicates, "{.reg .pred p, q; setp.lt.u32 p|q, %1, %2; selp.u32 %0, 1, 2, q;}")
ASM(combined, "{.reg .pred p, q; setp.ne.u32 q, %1, 0; setp.lt.and.s32 p, %1, %2, !q; selp.u32 %0, 1, 2, p;}")
ASM(shf, "shf.l.wrap.b32 %0, %1, %2, %2;")
ASM(bfind, "bfind.u32 %0, %1;")
ASM(bfind_s, "bfind.s32 %0, %1;")
ASM(carry, "{.reg .u32 t; add.cc.u32 t, %1, %2; addc.u32 %0, 0, 0;}")
ASM(borrow, "{.reg .u32 t; sub.cc.u32 t, %1, %2; subc.u32 %0, 0, 0;}")
ASM(set, "set.lt.u32.u32 %0, %1, %2;")
ASM(cnot, "cnot.b32 %0, %1;")
ASM(saturate, "add.sat.s32 %0, %1, %2;")
ASM(shift_far, "shr.s32 %0, %1, 40;")
ASM(cvt_sat, "{.reg .b16 h; cvt.sat.u8.s32 h, %1; cvt.u32.u16 %0, h; add.u32 %0, %0, %2;}")
ASM(div_zero, "{.reg .u32 z; and.b32 z, %2, 0; div.u32 %0, %1, z;}")
ASM(rem_zero, "{.reg .u32 z; and.b32 z, %2, 0; rem.u32 %0, %1, z;}")
