//! What kernels do besides arithmetic, compared with what CUDA says they should.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Device, arg, random, texts};
use softgpu::vm::Check;

/// Runs `test` with the kernels of `features.cu`, for each architecture.
fn each(test: impl Fn(&mut Device)) {
    for (_, text) in texts("features") {
        test(&mut Device::new(&text));
    }
}

#[test]
fn a_struct_by_value() {
    each(|d| {
        let p = d.upload(&[100f32]);
        let mut bytes: Vec<u8> = (0..20).flat_map(|i| (i as f32).to_le_bytes()).collect();
        bytes.extend(1000i32.to_le_bytes());
        bytes.resize(88, 0);
        bytes.extend(p.to_le_bytes());
        bytes.push(10);
        bytes.resize(104, 0);
        let out = d.empty(128);
        d.clean("by_value", 1, 32, 0, &[bytes, arg(out)]);
        let expected: Vec<f32> = (0..32).map(|i| (i % 20) as f32 + 1110.0).collect();
        assert_eq!(d.download::<f32>(out, 32), expected);
    });
}

#[test]
fn a_parameter_at_a_computed_address() {
    each(|d| {
        let index: Vec<i32> = (0..32).map(|i| i * 7 % 20).collect();
        let (p, out) = (d.upload(&index), d.empty(128));
        let mut bytes: Vec<u8> = (0..20).flat_map(|i| (i as f32).to_le_bytes()).collect();
        bytes.resize(104, 0);
        d.clean(
            "indexed_parameter",
            1,
            32,
            0,
            &[bytes.clone(), arg(p), arg(out)],
        );
        let expected: Vec<f32> = index.iter().map(|i| *i as f32).collect();
        assert_eq!(d.download::<f32>(out, 32), expected);
        let p = d.upload(&[1000i32; 32]);
        let report = d.launch("indexed_parameter", 1, 32, 0, &[bytes, arg(p), arg(out)]);
        assert_eq!(report.found, [Check::OutOfBounds], "{:?}", report.errors);
    });
}

#[test]
fn variables_of_the_module() {
    each(|d| {
        let out = d.empty(128);
        d.clean("variables", 1, 32, 0, &[arg(out), arg(1i32)]);
        let expected: Vec<f32> = (0..32).map(|i| (i % 4 + 1) as f32 + 8.0 + 2.0).collect();
        assert_eq!(d.download::<f32>(out, 32), expected);
        // They keep what one launch wrote for the next.
        d.clean("read_variable", 1, 32, 0, &[arg(out)]);
        assert_eq!(d.download::<f32>(out, 32), [5f32; 32]);
    });
}

#[test]
fn local_arrays() {
    each(|d| {
        let index: Vec<i32> = (0..32).map(|i| i * 5 % 19).collect();
        let (p, out) = (d.upload(&index), d.empty(128));
        d.clean("local_array", 1, 32, 0, &[arg(p), arg(out)]);
        let expected: Vec<f32> = (0..32)
            .map(|t| {
                let mut array: Vec<f32> = (0..16).map(|i| i as f32 * 2.0 + t as f32).collect();
                index[..8]
                    .iter()
                    .for_each(|i| array[*i as usize & 15] += 1.0);
                array[index[t] as usize & 15]
            })
            .collect();
        assert_eq!(d.download::<f32>(out, 32), expected);
    });
}

#[test]
fn dynamic_shared_memory() {
    each(|d| {
        let x = random(64, 1);
        let (p, out) = (d.upload(&x), d.empty(256));
        d.clean("dynamic", 1, 64, 256, &[arg(p), arg(out)]);
        let expected: Vec<f32> = (0..64).map(|t| x[63 - t] + (t % 32) as f32).collect();
        assert_eq!(d.download::<f32>(out, 64), expected);
    });
}

#[test]
fn calls_of_functions() {
    fn helper(n: usize, mut x: f32, sum: &mut f32) -> f32 {
        for _ in 0..n {
            x = x.mul_add(x, 1.0);
            *sum += x;
        }
        x
    }
    each(|d| {
        let x = random(32, 1);
        let (p, out) = (d.upload(&x), d.empty(512));
        d.clean("calls", 1, 32, 0, &[arg(p), arg(out)]);
        let expected: Vec<f32> = (0..32)
            .map(|t| {
                let mut sum = 0.0;
                let mut r = helper(2, x[t], &mut sum);
                if t & 1 == 1 {
                    r += helper(3, r, &mut sum);
                }
                r + sum
            })
            .collect();
        assert_eq!(d.download::<f32>(out, 32), expected);

        let pairs: Vec<f64> = (0..64).map(|i| i as f64 * 0.5).collect();
        let p = d.upload(&pairs);
        d.clean("struct_calls", 1, 32, 0, &[arg(p), arg(out)]);
        let expected: Vec<f64> = (0..32)
            .flat_map(|t| [pairs[2 * t] + t as f64, pairs[2 * t + 1] * t as f64])
            .collect();
        assert_eq!(d.download::<f64>(out, 64), expected);
    });
}

#[test]
fn atomic_updates() {
    each(|d| {
        for seed in 0..4 {
            d.options.seed = seed;
            let i = d.upload(&[0i32; 6]);
            let u = d.upload(&[u32::MAX, 0, 0, 5, 3, 0]);
            let l = d.upload(&[0u64; 3]);
            let f = d.upload(&[0f32]);
            let double = d.upload(&[0f64]);
            let old = d.empty(256);
            d.clean(
                "atomics",
                1,
                64,
                0,
                &[arg(i), arg(u), arg(l), arg(f), arg(double), arg(old)],
            );
            assert_eq!(d.download::<i32>(i, 6), [64, -128, 63, -63, 3, 128]);
            // 3 goes down to 0, to 100, and on: after 64 steps it is at 40.
            let xor = (0..64).fold(0, |all, t| all ^ t);
            assert_eq!(d.download::<u32>(u, 6), [0, u32::MAX, xor, 69, 40, 63]);
            assert_eq!(d.download::<u64>(l, 3), [64, 63, u64::MAX]);
            assert_eq!(d.download::<f32>(f, 1), [64.0]);
            assert_eq!(d.download::<f64>(double, 1), [32.0]);
            let mut seen = d.download::<u32>(old, 64);
            seen.sort_unstable();
            assert_eq!(seen, (5..69).collect::<Vec<u32>>());
        }
    });
}

#[test]
fn warp_operations() {
    each(|d| {
        let x: Vec<i32> = (0..64).map(|i| i * 7 % 8).collect();
        let (p, out) = (d.upload(&x), d.empty(64 * 10 * 4));
        d.clean("votes", 1, 64, 0, &[arg(p), arg(out)]);
        let got = d.download::<u32>(out, 640);
        for t in 0..64 {
            let (lane, warp) = (t % 32, &x[t / 32 * 32..t / 32 * 32 + 32]);
            let ballot = |f: &dyn Fn(i32) -> bool| {
                warp.iter()
                    .enumerate()
                    .fold(0u32, |all, (i, v)| all | u32::from(f(*v)) << i)
            };
            let count = x.iter().filter(|v| **v > 3).count() as u32;
            let down = if lane % 16 + 2 < 16 { lane + 2 } else { lane };
            let active = if x[t] > 3 { ballot(&|v| v > 3) } else { 0 };
            let expected = [
                ballot(&|v| v > 3),
                3,
                warp[3] as u32,
                warp[lane.saturating_sub(1)] as u32,
                warp[down] as u32,
                warp[lane ^ 5] as u32,
                count + 3000,
                ballot(&|v| v == x[t]),
                warp.iter().sum::<i32>() as u32 + 7000,
                active,
            ];
            for (k, e) in expected.iter().enumerate() {
                assert_eq!(got[t + 64 * k], *e, "result {k} of thread {t}");
            }
        }
    });
}

#[test]
fn special_registers() {
    each(|d| {
        let out = d.empty(64 * 32);
        d.clean("special", 1, 64, 0, &[arg(out)]);
        for (t, got) in d.download::<u32>(out, 512).chunks(8).enumerate() {
            let lane = t as u32 % 32;
            let (eq, lt) = (1u32 << lane, (1u32 << lane) - 1);
            assert_eq!(
                got,
                [eq, lt, eq | lt, !(eq | lt), !lt, lane, t as u32 / 32, 64]
            );
        }
    });
}

#[test]
fn halves() {
    // Values, with f16 and bf16 as the formats' definitions give them.
    let cases: [(f32, u16, u16); 10] = [
        (1.0, 0x3c00, 0x3f80),
        (-2.5, 0xc100, 0xc020),
        (65504.0, 0x7bff, 0x4780),
        (65520.0, 0x7c00, 0x4780),
        (5.960_464_5e-8, 0x0001, 0x3380),
        (2.980_232_2e-8, 0x0000, 0x3300),
        (1.0 / 3.0, 0x3555, 0x3eab),
        (f32::INFINITY, 0x7c00, 0x7f80),
        (f32::NAN, 0x7fff, 0x7fff),
        (-0.0, 0x8000, 0x8000),
    ];
    each(|d| {
        let x: Vec<f32> = cases.iter().map(|c| c.0).collect();
        let n = x.len();
        let p = d.upload(&x);
        let (h, b, f, pairs) = (
            d.empty(2 * n),
            d.empty(4 * n),
            d.empty(8 * n),
            d.empty(4 * n),
        );
        d.clean(
            "halves",
            1,
            n as u32,
            0,
            &[arg(p), arg(h), arg(b), arg(f), arg(pairs)],
        );
        let halves = d.download::<u16>(h, n);
        let brains = d.download::<u16>(b, 2 * n);
        let floats = d.download::<f32>(f, 2 * n);
        let pairs = d.download::<u32>(pairs, n);
        for (i, (value, half, brain)) in cases.into_iter().enumerate() {
            assert_eq!((halves[i], brains[2 * i]), (half, brain), "{value}");
            assert_eq!(pairs[i], u32::from(brain) << 16 | 0x3f80, "{value}");
        }
        assert_eq!(floats[..4], [1.0, 1.0, -2.5, 6.25]);
        assert_eq!(floats[12], 0x555 as f32 / 4096.0);
        // 1 * 1 + 1, and the square of -2.5 less 2.5.
        assert_eq!((brains[1], brains[3]), (0x4000, 0x4070));
    });
}

#[test]
fn vectors_of_all_widths() {
    each(|d| {
        let a: Vec<u8> = (0..128).collect();
        let b: Vec<i16> = (0..64).map(|i| i * 300).collect();
        let c: Vec<f64> = (0..64).map(f64::from).collect();
        let e: Vec<u16> = (0..128).map(|i| i * 500).collect();
        let f: Vec<f32> = (0..128).map(|i| i as f32).collect();
        let inputs = [
            d.upload(&a),
            d.upload(&b),
            d.upload(&c),
            d.upload(&e),
            d.upload(&f),
        ];
        let outputs = [
            d.empty(128),
            d.empty(128),
            d.empty(512),
            d.empty(256),
            d.empty(512),
        ];
        let args: Vec<Vec<u8>> = inputs.iter().chain(&outputs).map(|p| arg(*p)).collect();
        d.clean("vectors", 1, 32, 0, &args);
        let change = |i: usize, every: usize, at: usize| i % every == at;
        let p: Vec<u8> = a
            .iter()
            .enumerate()
            .map(|(i, x)| x + u8::from(change(i, 4, 0)))
            .collect();
        let q: Vec<i16> = b
            .iter()
            .enumerate()
            .map(|(i, x)| x - i16::from(change(i, 2, 1)))
            .collect();
        let r: Vec<f64> = c
            .iter()
            .enumerate()
            .map(|(i, x)| x + f64::from(u8::from(change(i, 2, 0))))
            .collect();
        let s: Vec<u16> = e
            .iter()
            .enumerate()
            .map(|(i, x)| x + 2 * u16::from(change(i, 4, 3)))
            .collect();
        let t: Vec<f32> = f
            .iter()
            .enumerate()
            .map(|(i, x)| if change(i, 4, 2) { -x } else { *x })
            .collect();
        assert_eq!(d.download::<u8>(outputs[0], 128), p);
        assert_eq!(d.download::<i16>(outputs[1], 64), q);
        assert_eq!(d.download::<f64>(outputs[2], 64), r);
        assert_eq!(d.download::<u16>(outputs[3], 128), s);
        assert_eq!(d.download::<f32>(outputs[4], 128), t);
    });
}

#[test]
fn loads_and_stores_with_cache_hints() {
    each(|d| {
        let (x, v) = (
            d.upload(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]),
            d.upload(&[100f32, 0.0]),
        );
        let out = d.empty(20);
        d.clean("cached", 1, 1, 0, &[arg(x), arg(out), arg(v)]);
        assert_eq!(d.download::<f32>(out, 5), [121.0, 1.0, 1.0, 2.0, 3.0]);
        assert_eq!(d.download::<f32>(v, 2), [100.0, 3.0]);
    });
}

#[test]
fn generic_addresses() {
    each(|d| {
        for which in 0..3i32 {
            let out = d.upload(&[0f32; 64]);
            d.clean("generic", 1, 32, 0, &[arg(out), arg(which)]);
            let got = d.download::<f32>(out, 64);
            for t in 0..32 {
                let value = 7.0 + t as f32;
                let untouched = if t % 2 == 0 { 2.0 } else { 1.0 };
                let expected = match which {
                    0 => (value, 6.0),
                    1 => (0.0, value + 3.0),
                    _ => (0.0, 3.0 + value + untouched),
                };
                assert_eq!((got[t], got[t + 32]), expected, "which {which} thread {t}");
            }
        }
    });
}

#[test]
fn lanes_part_and_meet() {
    each(|d| {
        let x: Vec<i32> = (1..=32).collect();
        let (p, out) = (d.upload(&x), d.empty(128));
        d.clean("diverging", 1, 32, 0, &[arg(p), arg(out)]);
        let steps: Vec<i32> = x
            .iter()
            .map(|n| {
                std::iter::successors(Some(*n), |n| {
                    Some(if n & 1 == 1 { 3 * n + 1 } else { n / 2 })
                })
            })
            .map(|chain| chain.take_while(|n| *n != 1).count() as i32)
            .collect();
        let long = steps.iter().filter(|s| **s > 10).count() as i32;
        let expected: Vec<i32> = steps.iter().map(|s| s + long).collect();
        assert_eq!(d.download::<i32>(out, 32), expected);
    });
}

#[test]
fn indexed_branches() {
    each(|d| {
        let x: Vec<u32> = (0..32).map(|i| i % 5).collect();
        let (p, out) = (d.upload(&x), d.empty(128));
        d.clean("table_branch", 1, 32, 0, &[arg(p), arg(out)]);
        let expected: Vec<u32> = x.iter().map(|i| 10 * (1 + i.min(&2))).collect();
        assert_eq!(d.download::<u32>(out, 32), expected);
    });
}

#[test]
fn the_order_of_accesses_outlasts_many_barriers() {
    for (_, text) in texts("features").into_iter().take(1) {
        let mut d = Device::new(&text);
        let out = d.empty(256);
        // Two barriers a turn; the detector numbers half of 2^19 before it starts anew.
        let times = 140_000u32;
        d.clean(
            "many_barriers",
            1,
            64,
            0,
            &[arg(out), arg(times), arg(u32::MAX)],
        );
        let expected: Vec<u32> = (0..64).map(|t| (t + times) % 64).collect();
        assert_eq!(d.download::<u32>(out, 64), expected);
        // The fault is past the point where the numbers start anew.
        let args = [arg(out), arg(times), arg(times - 2)];
        let report = d.launch("many_barriers", 1, 64, 0, &args);
        assert!(
            report.found.contains(&Check::SharedRace),
            "{:?}",
            report.errors
        );
    }
}

#[test]
fn what_is_unsupported_is_refused_with_its_line() {
    let with = |body: &str| {
        let text = format!(
            ".version 8.8\n.target sm_80\n.address_size 64\n.visible .entry k(\n.param .u64 p\n)\n{{\n.reg .b32 %r<9>;\n{body}\nret;\n}}\n"
        );
        softgpu::ptx::parse(&text).map(|_| ())
    };
    assert_eq!(with("add.s32 %r1, %r2, 1;"), Ok(()));
    for body in [
        "dp4a.u32.u32 %r1, %r2, %r3, %r4;",
        "add.s32.approx %r1, %r2, 1;",
        "mov.u32 %r1, %clock;",
        "ld.global.L3::magic.u32 %r1, [%r2];",
        "bar.sync %r1;",
        "bar.sync 1, 32;",
        "add.s32 %r1, %r10, 1;",
        "mul.s32 %r1, %r2, %r3;",
        "bra nowhere;",
        ".reg .b128 %q;",
    ] {
        let error = with(body).unwrap_err();
        assert!(error.starts_with("line 9:"), "{body}: {error}");
    }
}
