//! Random numbers, and buffers that are updated.

use super::{counting, run, steps};
use velora_graph::shapes::DataType;
use velora_runtime::backend::StepContext;
use velora_runtime::random::{block, stream};

const DROPOUT: &str =
    "g (float[1000,37] x) => (float[1000,37] y, bool[1000,37] m, float[1000,37] dx)
    <float r = {0.3}, bool t = {1}> {
        y, m = Dropout (x, r, t)
        dx = com.microsoft.DropoutGrad (x, m, r, t)
    }";

/// The mask is that of the generator, and both results follow from it.
#[test]
fn dropout_by_its_definition() {
    let x = counting(&[1000, 37]);
    let context = StepContext { seed: 5, step: 3 };
    let outputs = steps(DROPOUT, 2, &[context], &x);
    let x = x.to_f32().unwrap();
    let y: Vec<f32> = bytemuck::pod_collect_to_vec(&outputs[0]);
    let stream = stream("node/", b"y");
    for (i, &x) in x.iter().enumerate() {
        let bits = block(5, stream, 3 << 32 | (i / 4) as u64)[i % 4];
        let keep = f64::from(bits >> 8) / f64::from(1 << 24) >= f64::from(0.3f32);
        assert_eq!(outputs[1][i], u8::from(keep));
        let scale = (1.0 / (1.0 - f64::from(0.3f32))) as f32;
        assert_eq!(y[i], if keep { x * scale } else { 0.0 });
    }
    assert_eq!(outputs[0], outputs[2]);
    let kept = outputs[1].iter().filter(|&&keep| keep == 1).count() as f64;
    // Five standard deviations of a binomial.
    let n = x.len() as f64;
    assert!((kept - 0.7 * n).abs() < 5.0 * (0.21 * n).sqrt());
}

#[test]
fn dropout_depends_on_seed_and_step_but_not_on_threads() {
    let x = counting(&[1000, 37]);
    let masks = |threads, seed, step| {
        let context = StepContext { seed, step };
        steps(DROPOUT, threads, &[context], &x).swap_remove(1)
    };
    let one = masks(1, 1, 0);
    assert_eq!(one, masks(3, 1, 0));
    assert_ne!(one, masks(1, 2, 0));
    assert_ne!(one, masks(1, 1, 1));
}

#[test]
fn evaluation_keeps_everything() {
    let body = "g (float[5] x) => (float[5] y, bool[5] m) { y, m = Dropout (x) }";
    let x = counting(&[5]);
    let outputs = run(body, &[("x", x.clone())]);
    assert_eq!(outputs[0], x);
    assert_eq!(outputs[1].bytes[..], [1; 5]);
}

/// The buffer grows by 2 in every step, unless it starts anew.
#[test]
fn a_buffer_accumulates_in_place() {
    let body = |flag| {
        format!(
            "g (float[3] b) => (bool[1] done, float[3] sum)
            <float[3] v = {{2, 2, 2}}, bool[1] flag = {{{flag}}}> {{
                done, sum = com.microsoft.InPlaceAccumulatorV2 (b, v, flag)
            }}"
        )
    };
    let contexts = [StepContext::default(); 3];
    for (flag, expected) in [(0, [6f32, 7.0, 8.0]), (1, [2.0; 3])] {
        let outputs = steps(&body(flag), 1, &contexts, &counting(&[3]));
        assert_eq!(outputs[0], [1]);
        assert_eq!(outputs[1], bytemuck::cast_slice::<f32, u8>(&expected));
    }
}

#[test]
fn draws_have_their_moments() {
    let body = "g () => (float[50000] u, double[50000] n) {
        u = RandomUniform <shape = [50000], low = -1.0, high = 3.0> ()
        n = RandomNormal <shape = [50000], dtype = 11, mean = 2.0, scale = 3.0> ()
    }";
    let outputs = run(body, &[]);
    let uniform = outputs[0].to_f32().unwrap();
    let count = uniform.len() as f64;
    assert!(uniform.iter().all(|u| (-1.0..=3.0).contains(u)));
    let mean = uniform.iter().map(|&u| f64::from(u)).sum::<f64>() / count;
    // Variance 16 / 12, and five standard errors.
    assert!((mean - 1.0).abs() < 5.0 * (16.0 / 12.0 / count).sqrt());
    assert_eq!(outputs[1].data_type, DataType::DOUBLE);
    let normal: Vec<f64> = bytemuck::pod_collect_to_vec(&outputs[1].bytes);
    let mean = normal.iter().sum::<f64>() / count;
    assert!((mean - 2.0).abs() < 5.0 * 3.0 / count.sqrt());
    let variance = normal.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / count;
    assert!((variance / 9.0 - 1.0).abs() < 5.0 * (2.0 / count).sqrt());
}
