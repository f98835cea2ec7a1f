//! CUDA's mathematical functions, as NVRTC compiles them, against the host's.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Device, arg, random, texts};
use softgpu::ptx::{Kernel, parse};

unsafe extern "C" {
    safe fn erf(x: f64) -> f64;
    safe fn erfc(x: f64) -> f64;
    safe fn lgamma(x: f64) -> f64;
    safe fn tgamma(x: f64) -> f64;
    safe fn exp10(x: f64) -> f64;
    safe fn asinh(x: f64) -> f64;
    safe fn acosh(x: f64) -> f64;
    safe fn atanh(x: f64) -> f64;
    safe fn remainder(x: f64, y: f64) -> f64;
    safe fn ldexp(x: f64, n: i32) -> f64;
    safe fn nextafter(x: f64, y: f64) -> f64;
    safe fn nextafterf(x: f32, y: f32) -> f32;
}

/// A function of two arguments; errors in units of the last place that the CUDA guide allows for f32 and f64.
struct Function {
    name: &'static str,
    exact: fn(f64, f64) -> f64,
    ulps: [f64; 2],
    /// Arguments outside are left out: their results are undefined, or the guide gives no bound.
    domain: [f64; 2],
}

const fn function(name: &'static str, exact: fn(f64, f64) -> f64, ulps: [f64; 2]) -> Function {
    Function {
        name,
        exact,
        ulps,
        domain: [f64::NEG_INFINITY, f64::INFINITY],
    }
}

const fn within(mut f: Function, least: f64, greatest: f64) -> Function {
    f.domain = [least, greatest];
    f
}

/// Where the bound is 0 the result is the correctly rounded one, or the only one.
const FUNCTIONS: &[Function] = &[
    function("exp", |x, _| x.exp(), [2.0, 1.0]),
    function("exp2", |x, _| x.exp2(), [2.0, 1.0]),
    function("exp10", |x, _| exp10(x), [2.0, 1.0]),
    function("expm1", |x, _| x.exp_m1(), [1.0, 1.0]),
    function("log", |x, _| x.ln(), [1.0, 1.0]),
    function("log2", |x, _| x.log2(), [1.0, 1.0]),
    function("log10", |x, _| x.log10(), [2.0, 1.0]),
    function("log1p", |x, _| x.ln_1p(), [1.0, 1.0]),
    function("sin", |x, _| x.sin(), [2.0, 2.0]),
    function("cos", |x, _| x.cos(), [2.0, 2.0]),
    function("tan", |x, _| x.tan(), [4.0, 2.0]),
    function("asin", |x, _| x.asin(), [2.0, 2.0]),
    function("acos", |x, _| x.acos(), [2.0, 2.0]),
    function("atan", |x, _| x.atan(), [2.0, 2.0]),
    function("atan2", |x, y| x.atan2(y), [3.0, 2.0]),
    function("sinh", |x, _| x.sinh(), [3.0, 2.0]),
    function("cosh", |x, _| x.cosh(), [2.0, 1.0]),
    function("tanh", |x, _| x.tanh(), [2.0, 1.0]),
    function("asinh", |x, _| asinh(x), [3.0, 3.0]),
    function("acosh", |x, _| acosh(x), [4.0, 3.0]),
    function("atanh", |x, _| atanh(x), [3.0, 2.0]),
    function("pow", f64::powf, [4.0, 2.0]),
    function("hypot", f64::hypot, [3.0, 2.0]),
    function("cbrt", |x, _| x.cbrt(), [1.0, 1.0]),
    function("sqrt", |x, _| x.sqrt(), [0.0, 0.0]),
    function("rsqrt", |x, _| 1.0 / x.sqrt(), [2.0, 1.0]),
    function("erf", |x, _| erf(x), [2.0, 2.0]),
    function("erfc", |x, _| erfc(x), [4.0, 5.0]),
    within(function("lgamma", |x, _| lgamma(x), [6.0, 4.0]), 0.0, 1e30),
    within(function("tgamma", |x, _| tgamma(x), [5.0, 10.0]), 0.1, 30.0),
    function("fmod", |x, y| x % y, [0.0, 0.0]),
    function("remainder", |x, y| remainder(x, y), [0.0, 0.0]),
    function("floor", |x, _| x.floor(), [0.0, 0.0]),
    function("ceil", |x, _| x.ceil(), [0.0, 0.0]),
    function("trunc", |x, _| x.trunc(), [0.0, 0.0]),
    function("round", |x, _| x.round(), [0.0, 0.0]),
    function("rint", |x, _| x.round_ties_even(), [0.0, 0.0]),
    function("fmin", f64::min, [0.0, 0.0]),
    function("fmax", f64::max, [0.0, 0.0]),
    function("div", |x, y| x / y, [0.0, 0.0]),
    function("rcp", |x, _| 1.0 / x, [0.0, 0.0]),
    function("copysign", f64::copysign, [0.0, 0.0]),
    within(
        function("ldexp", |x, y| ldexp(x, y as i32), [0.0, 0.0]),
        -1e9,
        1e9,
    ),
];

/// Pairs of arguments: of all magnitudes, small ones, and special values.
fn arguments() -> (Vec<f64>, Vec<f64>) {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        2.0,
        -2.5,
        3.0,
        1e-40,
        -1e-42,
        1e-38,
        1e30,
        -3e38,
        1e10,
        105_615.0,
        47_039.0,
        1e5,
        -88.5,
        88.0,
        127.5,
        -149.0,
        709.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
    ];
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for a in special {
        for b in special {
            x.push(a);
            y.push(b);
        }
    }
    let (u, v) = (random(2048, 3), random(2048, 4));
    for (i, (a, b)) in u.iter().zip(&v).enumerate() {
        let scale = [1.0, 10.0, 100.0, 1e5][i % 4];
        x.push(f64::from(*a) * scale);
        y.push(f64::from(*b) * [1.0, 10.0][i / 4 % 2]);
    }
    // Both formats hold the arguments, so that one list serves for both.
    let single = |v: Vec<f64>| v.into_iter().map(|x| f64::from(x as f32)).collect();
    (single(x), single(y))
}

/// Distance from `exact` in units of the last place that numbers of that size have in the format.
fn error(got: f64, exact: f64, single: bool) -> f64 {
    // What the format rounds to infinity, or flushes.
    let rounded = if single {
        f64::from(exact as f32)
    } else {
        exact
    };
    if got == rounded || (got.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    if !got.is_finite() || !rounded.is_finite() {
        return f64::INFINITY;
    }
    let unit = if single {
        let y = (rounded as f32).abs();
        f64::from(y.next_up()) - f64::from(y)
    } else {
        rounded.abs().next_up() - rounded.abs()
    };
    (got - exact).abs() / unit
}

fn evaluate(
    kernels: &[Kernel],
    name: &str,
    worst: bool,
    x: &[f64],
    y: &[f64],
    single: bool,
) -> Vec<f64> {
    let mut device = Device::with(kernels.to_vec());
    device.options.worst_approx = worst;
    let n = x.len();
    let grid = (n as u32).div_ceil(128);
    if single {
        let upload =
            |d: &mut Device, v: &[f64]| d.upload(&v.iter().map(|x| *x as f32).collect::<Vec<_>>());
        let (a, b, out) = (
            upload(&mut device, x),
            upload(&mut device, y),
            device.empty(4 * n),
        );
        device.clean(
            name,
            grid,
            128,
            0,
            &[arg(a), arg(b), arg(out), arg(n as u32)],
        );
        device
            .download::<f32>(out, n)
            .into_iter()
            .map(f64::from)
            .collect()
    } else {
        let (a, b, out) = (device.upload(x), device.upload(y), device.empty(8 * n));
        device.clean(
            name,
            grid,
            128,
            0,
            &[arg(a), arg(b), arg(out), arg(n as u32)],
        );
        device.download(out, n)
    }
}

#[test]
fn functions_are_as_exact_as_cuda_promises() {
    let (x, y) = arguments();
    for (arch, text) in texts("math") {
        let kernels = parse(&text).unwrap();
        let mut tried = 0;
        for function in FUNCTIONS {
            for (single, prefix) in [(true, "f32"), (false, "f64")] {
                let name = format!("{prefix}_{}", function.name);
                let Some(kernel) = kernels.iter().find(|k| k.name == name) else {
                    continue;
                };
                tried += 1;
                // What is exact must be so with the roughest approximations inside, too.
                let worst = function.ulps[usize::from(!single)] == 0.0;
                let got = evaluate(std::slice::from_ref(kernel), &name, worst, &x, &y, single);
                let bound = function.ulps[usize::from(!single)];
                // Documented errors are from the correctly rounded result, which adds half a unit; the
                // host's f64 functions err by up to one.
                let allowed = bound + if single || bound == 0.0 { 0.5 } else { 1.5 };
                for i in 0..x.len() {
                    if x[i] < function.domain[0] || x[i] > function.domain[1] {
                        continue;
                    }
                    let exact = (function.exact)(x[i], y[i]);
                    let ulps = error(got[i], exact, single);
                    assert!(
                        ulps <= allowed,
                        "{name}({:e}, {:e}) compute_{arch}: {:e} instead of {exact:e}, {ulps} ulp",
                        x[i],
                        y[i],
                        got[i]
                    );
                }
            }
        }
        assert!(tried >= 22, "only {tried} functions");
        assert!(
            tried == 2 * FUNCTIONS.len() || cfg!(not(feature = "nvrtc")),
            "only {tried} functions"
        );
    }
}

#[test]
fn fused_products_and_neighbours() {
    let (x, y) = arguments();
    for (_, text) in texts("math") {
        let kernels = parse(&text).unwrap();
        if !kernels.iter().any(|k| k.name == "f32_fma") {
            continue;
        }
        let check = |name: &str, single: bool, exact: &dyn Fn(usize) -> f64| {
            let got = evaluate(&kernels, name, false, &x, &y, single);
            for i in 0..x.len() {
                let exact = exact(i);
                let same =
                    got[i].to_bits() == exact.to_bits() || (got[i].is_nan() && exact.is_nan());
                assert!(
                    same,
                    "{name}({:e}, {:e}): {:e} instead of {exact:e}",
                    x[i], y[i], got[i]
                );
            }
        };
        let (a, b) = (|i: usize| x[i] as f32, |i: usize| y[i] as f32);
        check("f32_fma", true, &|i| f64::from(a(i).mul_add(b(i), a(i))));
        check("f64_fma", false, &|i| x[i].mul_add(y[i], x[i]));
        check("f32_nextafter", true, &|i| {
            f64::from(nextafterf(a(i), b(i)))
        });
        check("f64_nextafter", false, &|i| nextafter(x[i], y[i]));
        let saturated = |i: usize| {
            if a(i) > 0.0 {
                f64::from(a(i).min(1.0))
            } else {
                0.0
            }
        };
        check("saturate", true, &saturated);
    }
}

/// Rounding in a direction gives the neighbour on that side of the exact result, and the exact result itself
/// where the format holds it. The exact result is known by its sign relative to a candidate, in f64.
#[test]
fn directed_rounding() {
    let (x, y) = arguments();
    // Whether `candidate` is above (positive), at or below the exact result.
    type Compare = fn(f64, f64, f64) -> f64;
    // Products and sums of f32 are exact in f64 but for sums of far magnitudes, which are left out.
    let operations: [(&str, Compare); 5] = [
        ("add", |c, x, y| c - (x + y)),
        ("mul", |c, x, y| c - x * y),
        ("div", |c, x, y| (c * y - x) * y.signum()),
        ("sqrt", |c, x, _| c * c - x),
        ("fma", |c, x, y| c - (x * y + x)),
    ];
    for (_, text) in texts("math") {
        let kernels = parse(&text).unwrap();
        if !kernels.iter().any(|k| k.name == "add_rz") {
            continue;
        }
        for (operation, above) in operations {
            let by = |mode: &str| {
                evaluate(
                    &kernels,
                    &format!("{operation}_{mode}"),
                    false,
                    &x,
                    &y,
                    true,
                )
            };
            let (down, up, zero) = (by("rd"), by("ru"), by("rz"));
            let mut tried = 0;
            for i in 0..x.len() {
                let (lo, hi) = (down[i], up[i]);
                let far =
                    |a: f64, b: f64| a != 0.0 && b != 0.0 && (a / b).abs().log2().abs() > 20.0;
                let product_far = operation == "fma" && far(x[i] * y[i], x[i]);
                if lo.is_nan()
                    || !x[i].is_finite()
                    || !y[i].is_finite()
                    || far(x[i], y[i])
                    || product_far
                {
                    continue;
                }
                tried += 1;
                let what = format!(
                    "{operation}({:e}, {:e}): {lo:e} {hi:e} {:e}",
                    x[i], y[i], zero[i]
                );
                if lo.is_finite() && hi.is_finite() {
                    assert!(
                        above(lo, x[i], y[i]) <= 0.0 && above(hi, x[i], y[i]) >= 0.0,
                        "{what}"
                    );
                    assert!(lo == hi || f64::from((lo as f32).next_up()) == hi, "{what}");
                    assert!(lo != hi || above(lo, x[i], y[i]) == 0.0, "{what}");
                }
                assert_eq!(
                    zero[i],
                    if lo > 0.0 || (lo == 0.0 && hi > 0.0) {
                        lo
                    } else {
                        hi
                    },
                    "{what}"
                );
            }
            assert!(tried > 500, "{operation}: {tried}");
        }
    }
}

/// For f64 no wider format is at hand; neighbours and bracketing are, with an error-free product.
#[test]
fn directed_rounding_of_f64() {
    let random64 = |seed| -> Vec<f64> {
        random(1000, seed)
            .iter()
            .zip(random(1000, seed + 1))
            .map(|(a, b)| f64::from(*a) + f64::from(b) * 1e-9)
            .collect()
    };
    let (x, y) = (random64(7), random64(9));
    for (_, text) in texts("math") {
        let kernels = parse(&text).unwrap();
        if !kernels.iter().any(|k| k.name == "wide_mul_rd") {
            continue;
        }
        let get = |name: &str| evaluate(&kernels, name, false, &x, &y, false);
        let (down, up) = (get("wide_mul_rd"), get("wide_mul_ru"));
        let (fma_down, fma_up) = (get("wide_fma_rd"), get("wide_fma_ru"));
        let (sum, sum_up, quotient) = (get("wide_add_rz"), get("wide_add_ru"), get("wide_div_rz"));
        for i in 0..x.len() {
            let (a, b) = (x[i], y[i]);
            // The sign of a * b - c is exact in a fused product.
            assert!(
                a.mul_add(b, -down[i]) >= 0.0 && a.mul_add(b, -up[i]) <= 0.0,
                "{a:e} * {b:e}"
            );
            assert!(
                up[i] == down[i].next_up() || up[i] == down[i],
                "{a:e} * {b:e}"
            );
            assert_eq!(fma_up[i], fma_down[i].next_up(), "{a:e} * {b:e} + {a:e}");
            let nearest = a.mul_add(b, a);
            assert!(
                nearest == fma_up[i] || nearest == fma_down[i],
                "{a:e} * {b:e} + {a:e}"
            );
            assert!(
                sum[i].abs() <= (a + b).abs() && sum_up[i] >= a + b,
                "{a:e} + {b:e}"
            );
            // Toward zero: the rest of the division has the sign of the dividend.
            let rest = (-quotient[i]).mul_add(b, a);
            assert!(rest * a >= 0.0, "{a:e} / {b:e}");
        }
    }
}

#[test]
fn approximations_err_within_their_bounds_and_do_err() {
    let x: Vec<f64> = random(2000, 5)
        .iter()
        .map(|v| f64::from(*v) * 6.0)
        .collect();
    let y: Vec<f64> = random(2000, 6)
        .iter()
        .map(|v| f64::from(*v) * 3.0)
        .collect();
    // Absolute bounds as functions of the argument, from the PTX manual's for the instruction behind.
    let half_ulp = |v: f64| f64::from((v as f32).abs().next_up() - (v as f32).abs()) / 2.0;
    type Exact = fn(f64, f64) -> f64;
    type Bound<'a> = &'a dyn Fn(f64, f64) -> f64;
    let cases: [(&str, Exact, Bound); 4] = [
        ("fast_sin", |x, _| x.sin(), &|_, _| 2f64.powf(-20.5)),
        ("fast_cos", |x, _| x.cos(), &|_, _| 2f64.powf(-20.5)),
        ("fast_div", |x, y| x / y, &|x, y| 4.0 * half_ulp(x / y)),
        // The argument times log2(e) is rounded before 2 to its power is taken with 2 units of error.
        ("fast_exp", |x, _| x.exp(), &|x, _| {
            4.0 * half_ulp(x.exp())
                + x.exp() * std::f64::consts::LN_2 * half_ulp(x * std::f64::consts::LOG2_E) * 2.1
        }),
    ];
    for (_, text) in texts("math") {
        let kernels = parse(&text).unwrap();
        if !kernels.iter().any(|k| k.name == "fast_exp") {
            continue;
        }
        for (name, exact, bound) in &cases {
            let count = |worst: bool| {
                let got = evaluate(&kernels, name, worst, &x, &y, true);
                let mut rough = 0;
                for i in 0..x.len() {
                    let exact = exact(x[i] as f32 as f64, y[i] as f32 as f64);
                    let off = (got[i] - exact).abs();
                    let bound = bound(x[i], y[i]);
                    assert!(
                        off <= bound,
                        "{name}({}, {}): off by {off:e} of {bound:e}",
                        x[i],
                        y[i]
                    );
                    rough += usize::from(off > bound / 2.0);
                }
                rough
            };
            let (rough, fine) = (count(true), count(false));
            assert!(
                rough > x.len() / 20 && rough > 2 * fine,
                "{name}: {rough} and {fine} beyond half the bound"
            );
        }
    }
}
