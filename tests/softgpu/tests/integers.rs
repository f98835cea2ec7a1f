//! Integer arithmetic and conversions of every width, against the host's.
#![cfg(feature = "nvrtc")]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Device, Scalar, arg, texts};
use std::sync::OnceLock;

/// The kernels of `integers.cu`, per architecture.
fn kernels() -> &'static [Vec<softgpu::ptx::Kernel>] {
    static PARSED: OnceLock<Vec<Vec<softgpu::ptx::Kernel>>> = OnceLock::new();
    PARSED.get_or_init(|| {
        texts("integers")
            .iter()
            .map(|(_, t)| softgpu::ptx::parse(t).unwrap())
            .collect()
    })
}

/// Bits for all widths: small numbers, the ends of ranges, and noise.
fn bits() -> Vec<u64> {
    let mut bits: Vec<u64> = vec![
        0,
        1,
        2,
        7,
        31,
        32,
        33,
        127,
        128,
        255,
        0x7fff,
        0x8000,
        0x7fff_ffff,
        0x8000_0000,
    ];
    bits.extend([
        u64::MAX,
        u64::MAX - 1,
        1 << 63,
        (1 << 63) - 1,
        0xffff_ffff,
        0x1_0000_0000,
    ]);
    let mut state = 9u64;
    for _ in 0..80 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bits.push(state ^ state >> 33);
    }
    bits
}

/// Runs `name` on all pairs and compares with `expected`, bit for bit.
fn compare<T: Scalar + std::fmt::Debug, R: Scalar>(
    name: &str,
    values: &[T],
    expected: impl Fn(T, T) -> R,
) {
    let pairs: Vec<(T, T)> = values
        .iter()
        .flat_map(|a| values.iter().map(|b| (*a, *b)))
        .collect();
    let n = pairs.len();
    for kernels in kernels() {
        let kernel = kernels
            .iter()
            .find(|k| k.name == name)
            .unwrap_or_else(|| panic!("no {name}"));
        let mut device = Device::with(vec![kernel.clone()]);
        let a = device.upload(&pairs.iter().map(|p| p.0).collect::<Vec<T>>());
        let b = device.upload(&pairs.iter().map(|p| p.1).collect::<Vec<T>>());
        let out = device.empty(n * std::mem::size_of::<R>());
        device.clean(
            name,
            (n as u32).div_ceil(256),
            256,
            0,
            &[arg(a), arg(b), arg(out), arg(n as u32)],
        );
        for ((x, y), got) in pairs.iter().zip(device.download::<R>(out, n)) {
            assert_eq!(
                got.bytes(),
                expected(*x, *y).bytes(),
                "{name}({x:?}, {y:?})"
            );
        }
    }
}

macro_rules! arithmetic {
    ($test:ident, $prefix:literal, $ty:ty) => {
        #[test]
        #[allow(clippy::unnecessary_cast)]
        fn $test() {
            let values: Vec<$ty> = bits().iter().map(|b| *b as $ty).collect();
            let run = |name: &str, f: &dyn Fn($ty, $ty) -> $ty| {
                compare(&format!("{}_{name}", $prefix), &values, f)
            };
            run("add", &|x, y| x.wrapping_add(y));
            run("sub", &|x, y| x.wrapping_sub(y));
            run("mul", &|x, y| x.wrapping_mul(y));
            run("div", &|x, y| x.wrapping_div(y | 1));
            run("rem", &|x, y| x.wrapping_rem(y | 1));
            run("min", &|x, y| x.min(y));
            run("max", &|x, y| x.max(y));
            run("and", &|x, y| x & y);
            run("or", &|x, y| x | y);
            run("xor", &|x, y| x ^ y);
            run("not", &|x, _| !x);
            run("neg", &|x, _| x.wrapping_neg());
            run("shl", &|x, y| x << (y & 7));
            run("shr", &|x, y| x >> (y & 7));
            run("mad", &|x, y| x.wrapping_mul(y).wrapping_add(x));
            run("seventh", &|x, _| x / 7);
            compare(&format!("{}_compare", $prefix), &values, |x: $ty, y| {
                let holds = [x < y, x <= y, x == y, x != y, x > y, x >= y];
                holds
                    .iter()
                    .enumerate()
                    .map(|(i, h)| i32::from(*h) << i)
                    .sum::<i32>()
            });
            compare(&format!("{}_to_f32", $prefix), &values, |x: $ty, _| {
                x as f32
            });
            compare(&format!("{}_to_f64", $prefix), &values, |x: $ty, _| {
                x as f64
            });
            compare(&format!("{}_to_s8", $prefix), &values, |x: $ty, _| x as i8);
            compare(&format!("{}_to_u16", $prefix), &values, |x: $ty, _| {
                x as u16
            });
            compare(&format!("{}_to_u32", $prefix), &values, |x: $ty, _| {
                x as u32
            });
            compare(&format!("{}_to_s64", $prefix), &values, |x: $ty, _| {
                x as i64
            });
        }
    };
}
arithmetic!(signed_8, "s8", i8);
arithmetic!(unsigned_8, "u8", u8);
arithmetic!(signed_16, "s16", i16);
arithmetic!(unsigned_16, "u16", u16);
arithmetic!(signed_32, "s32", i32);
arithmetic!(unsigned_32, "u32", u32);
arithmetic!(signed_64, "s64", i64);
arithmetic!(unsigned_64, "u64", u64);

#[test]
fn bits_and_high_halves() {
    let signed: Vec<i32> = bits().iter().map(|b| *b as i32).collect();
    let unsigned: Vec<u32> = bits().iter().map(|b| *b as u32).collect();
    let signed64: Vec<i64> = bits().iter().map(|b| *b as i64).collect();
    let unsigned64 = bits();
    let join = |x: u32, y: u32| u64::from(x) << 32 | u64::from(y);
    compare("mulhi", &signed, |x, y| {
        ((i64::from(x) * i64::from(y)) >> 32) as i32
    });
    compare("umulhi", &unsigned, |x, y| {
        ((u64::from(x) * u64::from(y)) >> 32) as u32
    });
    compare("mul64hi", &signed64, |x, y| {
        ((i128::from(x) * i128::from(y)) >> 64) as i64
    });
    compare("umul64hi", &unsigned64, |x, y| {
        ((u128::from(x) * u128::from(y)) >> 64) as u64
    });
    compare("wide", &signed, |x, y| {
        i64::from(x) * i64::from(y) + i64::from(y)
    });
    compare("uwide", &unsigned, |x, y| u64::from(x) * u64::from(y) + 7);
    compare("popc", &unsigned, |x, y| {
        (x.count_ones() + 100 * join(x, y).count_ones()) as i32
    });
    compare("clz", &signed, |x, y| {
        (x.leading_zeros() + 100 * join(x as u32, y as u32).leading_zeros()) as i32
    });
    compare("ffs", &signed, |x, _| {
        if x == 0 {
            0
        } else {
            x.trailing_zeros() as i32 + 1
        }
    });
    compare("brev", &unsigned, |x, _| x.reverse_bits());
    compare("brevll", &unsigned64, |x, _| x.reverse_bits());
    // Bytes 0 and 1 of each, interleaved.
    compare("perm", &unsigned, |x, y| {
        let byte = |v: u32, i: u32| v >> (8 * i) & 255;
        byte(x, 0) | byte(y, 0) << 8 | byte(x, 1) << 16 | byte(y, 1) << 24
    });
    compare("funnel_l", &unsigned, |x, y| {
        ((join(y, x) << (y & 31)) >> 32) as u32
    });
    compare("funnel_rc", &unsigned, |x, y| {
        (join(y, x) >> y.min(32)) as u32
    });
    compare("rotate", &unsigned, |x, _| x.rotate_left(7));
    compare("sad", &signed, |x, y| (x >> 2).abs_diff(y >> 2) + 3);
    let low = |x: i32| x << 8 >> 8;
    compare("mul24", &signed, |x, y| low(x).wrapping_mul(low(y)));
    compare("field", &signed, |x, _| x << 20 >> 25);
}

#[test]
fn forms_that_only_ptx_has() {
    let values: Vec<u32> = bits().iter().map(|b| *b as u32).collect();
    compare("asm_bfe_u", &values, |x, y| {
        let pos = y & 255;
        if pos > 31 { 0 } else { x >> pos & 0x1ff }
    });
    compare("asm_bfe_s", &values, |x, y| {
        // Bits beyond the word are copies of its sign.
        let pos = y & 255;
        let wide = i64::from(x as i32);
        (wide >> pos.min(63) << 55 >> 55) as u32
    });
    compare("asm_bfi", &values, |x, y| {
        y & !(0xfff << 5) | (x & 0xfff) << 5
    });
    compare("asm_lop3_xor", &values, |x, y| x ^ y ^ 0x1234_5678);
    compare("asm_lop3_pick", &values, |x, y| x & y | !x & 0x0ff0_f00f);
    // Four bytes from the third of the pair on.
    compare("asm_prmt_f4e", &values, |x, y| {
        ((u64::from(y) << 32 | u64::from(x)) >> 24) as u32
    });
    compare("asm_prmt_sign", &values, |x, y| {
        let sign = |v: u32| if v & 0x8000_0000 != 0 { 255 } else { 0 };
        x & 255 | (x >> 24) << 8 | sign(x) << 16 | sign(y) << 24
    });
    compare(
        "asm_slct",
        &values,
        |x, y| if y as i32 >= 0 { x } else { 77 },
    );
    compare("asm_mad_hi", &values, |x, y| {
        (((u64::from(x) * u64::from(y)) >> 32) as u32).wrapping_add(5)
    });
    compare(
        "asm_two_predicates",
        &values,
        |x, y| if x >= y { 1u32 } else { 2 },
    );
    compare("asm_combined", &values, |x, y| {
        if (x as i32) < y as i32 && x == 0 {
            1u32
        } else {
            2
        }
    });
    compare("asm_shf", &values, |x, y| {
        (((u64::from(y) << 32 | u64::from(x)) << (y & 31)) >> 32) as u32
    });
    compare("asm_bfind", &values, |x, _| {
        if x == 0 {
            u32::MAX
        } else {
            31 - x.leading_zeros()
        }
    });
    compare("asm_bfind_s", &values, |x, _| {
        let x = if x as i32 >= 0 { x } else { !x };
        if x == 0 {
            u32::MAX
        } else {
            31 - x.leading_zeros()
        }
    });
    compare("asm_carry", &values, |x, y| {
        u32::from(x.checked_add(y).is_none())
    });
    compare(
        "asm_borrow",
        &values,
        |x, y| if x < y { u32::MAX } else { 0 },
    );
    compare("asm_set", &values, |x, y| if x < y { u32::MAX } else { 0 });
    compare("asm_cnot", &values, |x, _| u32::from(x == 0));
    compare("asm_saturate", &values, |x, y| {
        (x as i32).saturating_add(y as i32) as u32
    });
    compare("asm_div_zero", &values, |_, _| u32::MAX);
    compare("asm_rem_zero", &values, |x, _| x);
    compare("asm_shift_far", &values, |x, _| {
        if x as i32 >= 0 { 0 } else { u32::MAX }
    });
    compare("asm_cvt_sat", &values, |x, y| {
        ((x as i32).clamp(0, 255) as u32).wrapping_add(y)
    });
}

#[test]
fn conversions_of_floats() {
    let mut wide: Vec<f64> = bits().iter().map(|b| f64::from_bits(*b)).collect();
    wide.extend([
        0.5,
        1.5,
        -0.5,
        -1.5,
        2.5,
        1e9,
        -1e9,
        3e9,
        1e19,
        -1e19,
        1e39,
        -1e-320,
        f64::NAN,
        f64::INFINITY,
    ]);
    wide.extend((0..40).map(|i| f64::from(i) * 0.37 - 7.0));
    let single: Vec<f32> = wide
        .iter()
        .map(|x| *x as f32)
        .chain(bits().iter().map(|b| f32::from_bits(*b as u32)))
        .collect();
    // Rust's casts saturate and make 0 of NaN, as the PTX manual asks.
    compare("f32_to_s32", &single, |x, _| x as i32);
    compare("f32_to_u32", &single, |x, _| x as u32);
    compare("f32_to_s64", &single, |x, _| x as i64);
    compare("f32_to_u64", &single, |x, _| x as u64);
    compare("f64_to_s32", &wide, |x, _| x as i32);
    compare("f64_to_u64", &wide, |x, _| x as u64);
    compare("f32_to_s32_rn", &single, |x, _| x.round_ties_even() as i32);
    compare("f32_to_s32_rd", &single, |x, _| x.floor() as i32);
    let nan = |x: f32| {
        if x.is_nan() {
            f32::from_bits(0x7fff_ffff)
        } else {
            x
        }
    };
    compare("f64_to_f32", &wide, |x, _| nan(x as f32));
    // The nearest float, or its neighbour on the side that was asked for.
    compare("f64_to_f32_rz", &wide, |x, _| {
        let near = x as f32;
        nan(if f64::from(near).abs() > x.abs() {
            if near > 0.0 {
                near.next_down()
            } else {
                near.next_up()
            }
        } else {
            near
        })
    });
    compare("f64_to_f32_ru", &wide, |x, _| {
        let near = x as f32;
        nan(if f64::from(near) < x {
            near.next_up()
        } else {
            near
        })
    });
    let signed: Vec<i32> = bits().iter().map(|b| *b as i32).collect();
    compare("s32_to_f32_rz", &signed, |x, _| {
        let near = x as f32;
        if f64::from(near).abs() > f64::from(x).abs() {
            if x > 0 {
                near.next_down()
            } else {
                near.next_up()
            }
        } else {
            near
        }
    });
    compare("s32_to_f32_ru", &signed, |x, _| {
        let near = x as f32;
        if f64::from(near) < f64::from(x) {
            near.next_up()
        } else {
            near
        }
    });
    compare("u64_to_f32_rd", &bits(), |x, _| {
        let near = x as f32;
        if near as u128 > u128::from(x) {
            near.next_down()
        } else {
            near
        }
    });
    let signed64: Vec<i64> = bits().iter().map(|b| *b as i64).collect();
    compare("s64_to_f64_rz", &signed64, |x, _| {
        let near = x as f64;
        let beyond = (near as i128).abs() > i128::from(x).abs();
        if beyond {
            if x > 0 {
                near.next_down()
            } else {
                near.next_up()
            }
        } else {
            near
        }
    });
}
