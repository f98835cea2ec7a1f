//! Each rewritten weight gradient is s · v ⊗ (zᵀ dY), in 64 bits and from X and dY alone.

use super::{Case, config, graphs, settings};
use proptest::prelude::*;
use velora_passes::select::{Decision, Init};
use velora_testgen::{Contraction, random};

/// The unit roundoff of 32-bit floats.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// The direction that a layer should have, with a bound of the error of each entry; `None` where any
/// unit vector will do.
fn direction(
    x: &[f64],
    features: usize,
    groups: usize,
    size: usize,
    init: Init,
) -> Option<Vec<(f64, f64)>> {
    let even = (1.0 / (size as f64).sqrt(), 4.0 * U);
    match init {
        // Nothing has filled those yet.
        Init::None | Init::FirstBatch | Init::Svd => return Some(vec![even; size]),
        Init::Random | Init::Uniform => return None,
        // From the start, which is zero, a moving average is that of the batch.
        Init::BatchAverage | Init::RunningAverage => {}
    }
    let (mut sums, mut sizes) = (vec![0.0; size], vec![0.0; size]);
    for row in x.chunks(features) {
        for (place, entry) in row.iter().enumerate() {
            sums[place % size] += entry;
            sizes[place % size] += entry.abs();
        }
    }
    let norm = sums.iter().map(|s| s * s).sum::<f64>().sqrt();
    if norm == 0.0 {
        return Some(vec![even; size]);
    }
    // A sum of n numbers is off by n roundings of its absolute sum; the norm by those of all sums.
    let terms = (x.len() / features + groups) as f64;
    let errors: Vec<f64> = sizes.iter().map(|s| terms * U * s).collect();
    let all = errors.iter().map(|e| e * e).sum::<f64>().sqrt();
    let rounding = (size + 8) as f64 * U;
    let entry = |(sum, error): (&f64, &f64)| {
        let v = sum / norm;
        (
            v,
            1.01 * (error + v.abs() * all) / norm + rounding * v.abs(),
        )
    };
    Some(sums.iter().zip(&errors).map(entry).collect())
}

fn check(case: &Case, decision: &Decision, site: &Contraction) {
    let graph = &case.model.graph;
    let (features, outputs) = (site.features as usize, site.outputs as usize);
    let groups = decision.settings.grouping.groups(site.features) as usize;
    let size = features.div_ceil(groups);
    let x = case.values[&site.x].f();
    let dy = case.values[&site.dy].f();
    let tensor = &graph.value(decision.activation).name;
    let v = case.new_values[&format!("velora.{tensor}.v")].f();
    assert_eq!(v.len(), size);
    match direction(x, features, groups, size, decision.settings.init) {
        Some(expected) => {
            for (found, (expected, tolerance)) in v.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() <= *tolerance,
                    "v of {tensor}: {found}, expected {expected} ± {tolerance}"
                );
            }
        }
        None => {
            let norm = v.iter().map(|e| e * e).sum::<f64>();
            assert!((norm - 1.0).abs() <= 4.0 * U, "norm {norm}");
        }
    }

    let (mut product, mut sizes) = (vec![0.0; groups * outputs], vec![0.0; groups * outputs]);
    for (row, out) in x.chunks(features).zip(dy.chunks(outputs)) {
        for (group, sub_token) in row.chunks(size).enumerate() {
            let z: f64 = sub_token.iter().zip(v).map(|(x, v)| x * v).sum();
            let large: f64 = sub_token.iter().zip(v).map(|(x, v)| (x * v).abs()).sum();
            for (o, dy) in out.iter().enumerate() {
                product[group * outputs + o] += z * dy;
                sizes[group * outputs + o] += large * dy.abs();
            }
        }
    }
    let found = case.new_values[&site.result].f();
    let tokens = x.len() / features;
    assert_eq!(found.len(), features * outputs);
    let scale = decision.settings.scale * f64::from(site.scale);
    for feature in 0..features {
        for o in 0..outputs {
            let place = feature / size * outputs + o;
            let factor = scale * v[feature % size];
            let expected = factor * product[place];
            // Sums over a sub-token and over tokens, and a few products on the way.
            let roundings = (size + tokens + 8) as f64;
            let tolerance = 1.01 * roundings * U * factor.abs() * sizes[place];
            let at = match site.transposed {
                false => feature * outputs + o,
                true => o * features + feature,
            };
            assert!(
                (found[at] - expected).abs() <= tolerance,
                "dW of {} at [{feature}, {o}]: {}, expected {expected} ± {tolerance}",
                site.parameter,
                found[at]
            );
        }
    }
}

proptest! {
    #![proptest_config(config(250))]

    #[test]
    fn weight_gradients_are_the_formula(graph in graphs(), options in settings()) {
        let Some(case) = Case::new(random::graph(&graph), &options, 3) else { return Ok(()) };
        let graph = &case.model.graph;
        let product = |d: &Decision| &graph.value(graph.node(d.node).outputs[0].unwrap()).name;
        for decision in case.outcome.decisions.iter().filter(|d| d.rewritten()) {
            let known = case.made.contractions.iter().find(|c| &c.product == product(decision));
            prop_assert!(known.is_some(), "{} is no contraction", product(decision));
            check(&case, decision, known.unwrap());
        }
        // None is overlooked.
        for site in &case.made.contractions {
            let found = case.outcome.decisions.iter().find(|d| product(d) == &site.product);
            prop_assert!(found.is_some(), "{} is not found", site.product);
            prop_assert!(found.unwrap().site.is_some(), "{}: {}", site.product, found.unwrap().message);
            prop_assert_eq!(&graph.value(found.unwrap().parameter).name, &site.parameter);
        }
    }
}
