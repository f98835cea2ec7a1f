//! Kernels of training steps, correct ones: nothing is reported, and results agree with f64.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Device, arg, random, texts};

/// Rounding to f32 errs by this, relative to the result.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;

fn each(test: impl Fn(&mut Device)) {
    for (_, text) in texts("layers") {
        for seed in 0..4 {
            let mut device = Device::new(&text);
            device.options.seed = seed;
            test(&mut device);
        }
    }
}

fn close(got: &[f32], exact: &[f64], allowed: impl Fn(usize) -> f64) {
    for (i, (got, exact)) in got.iter().zip(exact).enumerate() {
        let off = (f64::from(*got) - exact).abs();
        assert!(
            off <= allowed(i),
            "{i}: {got} instead of {exact}, off by {off:e} of {:e}",
            allowed(i)
        );
    }
}

#[test]
fn compression_and_expansion() {
    each(|d| {
        // Rows of 16-byte loads, and rows that none of these fit.
        for m in [128usize, 43] {
            let rows = 50;
            let (x, v) = (random(rows * m, 1), random(m, 2));
            let (px, pv) = (d.upload(&x), d.upload(&v));
            let (pz, pw) = (d.empty(4 * rows), d.empty(4 * rows * m));
            let args = [arg(px), arg(pv), arg(pz), arg(rows as u32), arg(m as u32)];
            let report = d.clean("velora_compress", 7, 256, 0, &args);
            assert_eq!(report.bytes_read, 2 * 4 * (rows * m) as u64);
            assert_eq!(report.bytes_written, 4 * rows as u64);
            let products = |r: usize| (0..m).map(move |i| (r * m + i, i));
            let dot = |f: &dyn Fn(f64) -> f64| -> Vec<f64> {
                (0..rows)
                    .map(|r| {
                        products(r)
                            .map(|(a, b)| f(f64::from(x[a]) * f64::from(v[b])))
                            .sum()
                    })
                    .collect()
            };
            let (exact, size) = (dot(&|p| p), dot(&f64::abs));
            let z: Vec<f32> = d.download(pz, rows);
            // Every product passes through at most m / 32 + 6 roundings of sums.
            close(&z, &exact, |r| size[r] * (m as f64 / 32.0 + 6.0) * UNIT);

            let total = (rows * m) as u64;
            let args = [
                arg(pz),
                arg(pv),
                arg(pw),
                arg(total),
                arg(m as u32),
                arg(0.5f32),
            ];
            d.clean("velora_expand", 4, 128, 0, &args);
            let w: Vec<f32> = d.download(pw, rows * m);
            let exact: Vec<f32> = (0..rows * m).map(|i| 0.5 * z[i / m] * v[i % m]).collect();
            assert_eq!(w, exact);
        }
    });
}

#[test]
fn compression_of_bf16() {
    each(|d| {
        let (rows, m) = (20usize, 64usize);
        let bf16 = |x: &f32| (x.to_bits() >> 16) as u16;
        let x: Vec<u16> = random(rows * m, 1).iter().map(bf16).collect();
        let v = random(m, 2);
        let (px, pv, pz) = (d.upload(&x), d.upload(&v), d.empty(2 * rows));
        let args = [arg(px), arg(pv), arg(pz), arg(rows as u32), arg(m as u32)];
        d.clean("velora_compress_bf16", 3, 256, 0, &args);
        let value = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
        let exact: Vec<f64> = (0..rows)
            .map(|r| (0..m).map(|i| value(x[r * m + i]) * f64::from(v[i])).sum())
            .collect();
        let z: Vec<f32> = d
            .download::<u16>(pz, rows)
            .into_iter()
            .map(|b| value(b) as f32)
            .collect();
        // Half a unit of the 8 bits that are stored, and the sum's own error, for which 1 % of that is plenty.
        close(&z, &exact, |r| exact[r].abs() * 2f64.powi(-8) * 1.01 + 1e-6);
    });
}

#[test]
fn layer_norm_and_its_gradient() {
    each(|d| {
        let (n, width) = (6usize, 300usize);
        let (x, gamma, beta, dy) = (
            random(n * width, 1),
            random(width, 2),
            random(width, 3),
            random(n * width, 4),
        );
        let [px, pg, pb, pdy] = [&x, &gamma, &beta, &dy].map(|v| d.upload(v));
        let [py, pm, pr, pdx] = [n * width, n, n, n * width].map(|n| d.empty(4 * n));
        let (dgamma, dbeta) = (d.upload(&vec![0f32; width]), d.upload(&vec![0f32; width]));
        let width_arg = arg(width as u32);
        let args = [
            arg(px),
            arg(pg),
            arg(pb),
            arg(py),
            arg(pm),
            arg(pr),
            width_arg.clone(),
            arg(1e-5f32),
        ];
        d.clean("layernorm_fwd", n as u32, 128, 0, &args);
        let args = [
            arg(px),
            arg(pg),
            arg(pdy),
            arg(pm),
            arg(pr),
            arg(pdx),
            arg(dgamma),
            arg(dbeta),
            width_arg,
        ];
        d.clean("layernorm_bwd", n as u32, 128, 0, &args);

        let (mut y, mut dx, mut dg) = (Vec::new(), Vec::new(), vec![0f64; width]);
        for row in 0..n {
            let at = |v: &[f32], i: usize| f64::from(v[row * width + i]);
            let mean = (0..width).map(|i| at(&x, i)).sum::<f64>() / width as f64;
            let variance =
                (0..width).map(|i| (at(&x, i) - mean).powi(2)).sum::<f64>() / width as f64;
            let scale = 1.0 / (variance + 1e-5).sqrt();
            let normal: Vec<f64> = (0..width).map(|i| (at(&x, i) - mean) * scale).collect();
            let g: Vec<f64> = (0..width)
                .map(|i| at(&dy, i) * f64::from(gamma[i]))
                .collect();
            let a = g.iter().sum::<f64>() / width as f64;
            let b = g.iter().zip(&normal).map(|(g, x)| g * x).sum::<f64>() / width as f64;
            for i in 0..width {
                y.push(normal[i] * f64::from(gamma[i]) + f64::from(beta[i]));
                dx.push(scale * (g[i] - a - normal[i] * b));
                dg[i] += at(&dy, i) * normal[i];
            }
        }
        // Inputs are below 1 and normalised values below 2, so results are below 3 and gradients below 4.
        // Sums of 300 take at most 3 + 10 roundings, the reciprocal root errs by 2^-22.9, and a few operations
        // follow: 32 roundings of numbers below 4 are more than enough.
        close(&d.download(py, n * width), &y, |_| 32.0 * 4.0 * UNIT);
        close(&d.download(pdx, n * width), &dx, |_| 32.0 * 4.0 * UNIT);
        close(&d.download(dgamma, width), &dg, |_| 32.0 * 12.0 * UNIT);
    });
}

#[test]
fn cross_entropy() {
    each(|d| {
        let (n, classes) = (5usize, 70usize);
        let logits: Vec<f32> = random(n * classes, 1).iter().map(|x| x * 8.0).collect();
        let labels = [3i32, 69, -100, 0, 31];
        let (px, pl) = (d.upload(&logits), d.upload(&labels));
        let (loss, dx) = (d.empty(4 * n), d.empty(4 * n * classes));
        let args = [
            arg(px),
            arg(pl),
            arg(loss),
            arg(dx),
            arg(classes as u32),
            arg(-100i32),
            arg(0.25f32),
        ];
        d.clean("softmax_xent", n as u32, 64, 0, &args);
        let (mut losses, mut gradients) = (Vec::new(), Vec::new());
        for (row, label) in logits.chunks(classes).zip(labels) {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            let ignored = label == -100;
            losses.push(if ignored {
                0.0
            } else {
                sum.ln() - f64::from(row[label as usize])
            });
            gradients.extend(row.iter().enumerate().map(|(i, x)| {
                let hit = if i as i32 == label { 1.0 } else { 0.0 };
                if ignored {
                    0.0
                } else {
                    0.25 * (f64::from(*x).exp() / sum - hit)
                }
            }));
        }
        // Probabilities are at most 1; an exponential errs by 2 units in the last place plus what rounding its
        // argument, below 16, does (16 roundings), a sum by 8 roundings.
        close(&d.download(loss, n), &losses, |_| 32.0 * 16.0 * UNIT);
        close(&d.download(dx, n * classes), &gradients, |_| {
            0.25 * 2.0 * 32.0 * UNIT
        });
    });
}
