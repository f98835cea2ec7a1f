// Functions of one or two arguments, elementwise, for comparison with the host's.
#define ELEMENTWISE(name, T, expression)                                                           \
  extern "C" __global__ void name(const T* __restrict__ a, const T* __restrict__ b,                \
                                  T* __restrict__ out, unsigned n) {                               \
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;                                      \
    if (i < n) {                                                                                   \
      const T x = a[i], y = b[i];                                                                  \
      (void)y;                                                                                     \
      out[i] = expression;                                                                         \
    }                                                                                              \
  }
#define BOTH(name, single, wide) ELEMENTWISE(f32_##name, float, single) ELEMENTWISE(f64_##name, double, wide)

BOTH(exp, expf(x), exp(x))
BOTH(log, logf(x), log(x))
BOTH(sin, sinf(x), sin(x))
BOTH(cos, cosf(x), cos(x))
BOTH(tan, tanf(x), tan(x))
BOTH(tanh, tanhf(x), tanh(x))
BOTH(pow, powf(x, y), pow(x, y))
BOTH(sqrt, sqrtf(x), sqrt(x))
BOTH(erf, erff(x), erf(x))
BOTH(fmod, fmodf(x, y), fmod(x, y))
BOTH(div, x / y, x / y)

// Left out of the PTX that is committed.
#ifndef SHORT
BOTH(exp2, exp2f(x), exp2(x))
BOTH(exp10, exp10f(x), exp10(x))
BOTH(expm1, expm1f(x), expm1(x))
BOTH(log2, log2f(x), log2(x))
BOTH(log10, log10f(x), log10(x))
BOTH(log1p, log1pf(x), log1p(x))
BOTH(asin, asinf(x), asin(x))
BOTH(acos, acosf(x), acos(x))
BOTH(atan, atanf(x), atan(x))
BOTH(atan2, atan2f(x, y), atan2(x, y))
BOTH(sinh, sinhf(x), sinh(x))
BOTH(cosh, coshf(x), cosh(x))
BOTH(asinh, asinhf(x), asinh(x))
BOTH(acosh, acoshf(x), acosh(x))
BOTH(atanh, atanhf(x), atanh(x))
BOTH(hypot, hypotf(x, y), hypot(x, y))
BOTH(cbrt, cbrtf(x), cbrt(x))
BOTH(rsqrt, rsqrtf(x), rsqrt(x))
BOTH(erfc, erfcf(x), erfc(x))
BOTH(lgamma, lgammaf(x), lgamma(x))
BOTH(tgamma, tgammaf(x), tgamma(x))
BOTH(remainder, remainderf(x, y), remainder(x, y))
BOTH(floor, floorf(x), floor(x))
BOTH(ceil, ceilf(x), ceil(x))
BOTH(trunc, truncf(x), trunc(x))
BOTH(round, roundf(x), round(x))
BOTH(rint, rintf(x), rint(x))
BOTH(fmin, fminf(x, y), fmin(x, y))
BOTH(fmax, fmaxf(x, y), fmax(x, y))
BOTH(rcp, 1.0f / x, 1.0 / x)
BOTH(copysign, copysignf(x, y), copysign(x, y))
BOTH(ldexp, ldexpf(x, (int)y), ldexp(x, (int)y))
BOTH(fma, fmaf(x, y, x), fma(x, y, x))
BOTH(nextafter, nextafterf(x, y), nextafter(x, y))

// Directed rounding; the host emulates each with more precision.
ELEMENTWISE(add_rz, float, __fadd_rz(x, y))
ELEMENTWISE(add_ru, float, __fadd_ru(x, y))
ELEMENTWISE(add_rd, float, __fadd_rd(x, y))
ELEMENTWISE(mul_rz, float, __fmul_rz(x, y))
ELEMENTWISE(mul_ru, float, __fmul_ru(x, y))
ELEMENTWISE(mul_rd, float, __fmul_rd(x, y))
ELEMENTWISE(div_rz, float, __fdiv_rz(x, y))
ELEMENTWISE(div_ru, float, __fdiv_ru(x, y))
ELEMENTWISE(div_rd, float, __fdiv_rd(x, y))
ELEMENTWISE(sqrt_rz, float, __fsqrt_rz(x))
ELEMENTWISE(sqrt_ru, float, __fsqrt_ru(x))
ELEMENTWISE(sqrt_rd, float, __fsqrt_rd(x))
ELEMENTWISE(fma_rz, float, __fmaf_rz(x, y, x))
ELEMENTWISE(fma_ru, float, __fmaf_ru(x, y, x))
ELEMENTWISE(fma_rd, float, __fmaf_rd(x, y, x))
ELEMENTWISE(wide_add_rz, double, __dadd_rz(x, y))
ELEMENTWISE(wide_add_ru, double, __dadd_ru(x, y))
ELEMENTWISE(wide_mul_rd, double, __dmul_rd(x, y))
ELEMENTWISE(wide_mul_ru, double, __dmul_ru(x, y))
ELEMENTWISE(wide_div_rz, double, __ddiv_rz(x, y))
ELEMENTWISE(wide_fma_rd, double, __fma_rd(x, y, x))
ELEMENTWISE(wide_fma_ru, double, __fma_ru(x, y, x))

// The fast versions, on the approximate instructions.
ELEMENTWISE(fast_exp, float, __expf(x))
ELEMENTWISE(fast_log, float, __logf(x))
ELEMENTWISE(fast_sin, float, __sinf(x))
ELEMENTWISE(fast_cos, float, __cosf(x))
ELEMENTWISE(fast_div, float, __fdividef(x, y))
ELEMENTWISE(fast_rsqrt, float, __frsqrt_rn(x))
ELEMENTWISE(saturate, float, __saturatef(x))
#endif
