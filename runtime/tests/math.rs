//! Errors of the elementary functions, in units in the last place, against the same in 64 bits.
#![allow(clippy::unwrap_used)]

use rayon::prelude::*;
use velora_runtime::cpu::math;

/// The distance of a result from the exact value, in steps of 32-bit numbers at that value.
fn ulps(found: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    if found.to_bits() == rounded.to_bits() || (found.is_nan() && rounded.is_nan()) {
        return 0.0;
    }
    if found.is_nan() || rounded.is_nan() || found.is_infinite() || rounded.is_infinite() {
        return f64::INFINITY;
    }
    if found == 0.0 && rounded == 0.0 {
        // The sign of zero counts.
        return f64::INFINITY;
    }
    let size = exact.abs().max(f64::from(f32::MIN_POSITIVE));
    let step = 2f64.powi(size.log2().floor() as i32 - 23);
    (f64::from(found) - exact).abs() / step
}

/// The largest error over every `stride`th number, with where it is.
fn worst(stride: usize, function: fn(f32) -> f32, exact: fn(f64) -> f64) -> (f64, f32) {
    let special = vec![
        -0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::from_bits(1),
        -f32::from_bits(1),
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::MIN,
    ];
    (0..=u32::MAX as usize / stride)
        .into_par_iter()
        .map(|index| f32::from_bits((index * stride) as u32))
        .chain(special.into_par_iter())
        .map(|x| (ulps(function(x), exact(f64::from(x))), x))
        .reduce(|| (0.0, 0.0), |a, b| if a.0 < b.0 { b } else { a })
}

fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

fn softplus(x: f64) -> f64 {
    let small = (-x.abs()).exp().ln_1p();
    if x > 0.0 { x + small } else { small }
}

/// A function in 32 and in 64 bits.
type Pair = (fn(f32) -> f32, fn(f64) -> f64);

fn check(stride: usize) {
    let functions: [(&str, Pair, f64); 9] = [
        ("exp", (math::exp, f64::exp), 1.0),
        ("log", (math::log, f64::ln), 0.51),
        ("tanh", (math::tanh, f64::tanh), 2.0),
        ("sigmoid", (math::sigmoid, sigmoid), 2.5),
        ("softplus", (math::softplus, softplus), 0.51),
        ("erf", (math::erf, math::erf_f64), 2.0),
        ("sin", (bounded::sin, bounded::exact_sin), 0.51),
        ("cos", (bounded::cos, bounded::exact_cos), 0.51),
        ("tan", (bounded::tan, bounded::exact_tan), 0.51),
    ];
    let mut wrong = Vec::new();
    for (name, (function, exact), limit) in functions {
        let (error, at) = worst(stride, function, exact);
        println!("{name}: {error:.3} ulp at {at:e}");
        if error > limit {
            wrong.push(format!("{name}: {error:.3} ulp at {at:e}, limit {limit}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Angles within the limit; beyond, the kernels use the functions of the standard library.
mod bounded {
    use velora_runtime::cpu::math;

    fn near(x: f32) -> f32 {
        if x.abs() > math::TRIGONOMETRIC_LIMIT {
            1.0
        } else {
            x
        }
    }

    pub fn sin(x: f32) -> f32 {
        math::sin(near(x))
    }
    pub fn cos(x: f32) -> f32 {
        math::cos(near(x))
    }
    pub fn tan(x: f32) -> f32 {
        math::tan(near(x))
    }
    pub fn exact_sin(x: f64) -> f64 {
        f64::from(near(x as f32)).sin()
    }
    pub fn exact_cos(x: f64) -> f64 {
        f64::from(near(x as f32)).cos()
    }
    pub fn exact_tan(x: f64) -> f64 {
        f64::from(near(x as f32)).tan()
    }
}

#[test]
fn errors_are_small_on_a_sample_of_all_numbers() {
    check(4_001);
}

#[test]
#[ignore = "all numbers: minutes"]
fn errors_are_small_on_all_numbers() {
    check(1);
}

#[test]
fn powers_are_rounded_well() {
    let mut state = 1u64;
    let mut draw = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 32) as u32
    };
    let mut worst = (0.0, 0.0, 0.0);
    let mut test = |x: f32, y: f32| {
        let error = ulps(math::pow(x, y), f64::from(x).powf(f64::from(y)));
        if error > worst.0 {
            worst = (error, x, y);
        }
    };
    for _ in 0..1_000_000 {
        // Any bits, and numbers of which the power is finite.
        test(f32::from_bits(draw()), f32::from_bits(draw()));
        let x = f32::from_bits(0x3000_0000 + draw() % 0x2000_0000);
        test(x, (draw() as f32 / 2f32.powi(32) - 0.5) * 16.0);
        test(
            1.0 + (draw() as f32 / 2f32.powi(32) - 0.5) * 1e-3,
            (draw() % 100_000) as f32,
        );
        test(-x, (draw() % 20) as f32 - 10.0);
    }
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0,
        -2.0,
        3.0,
        -3.0,
        1e38,
        1e-45,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        16_777_217.0,
        -33_554_432.0,
    ];
    for x in special {
        for y in special {
            test(x, y);
        }
    }
    println!("pow: {worst:?}");
    assert!(worst.0 < 0.51, "{worst:?}");
}
