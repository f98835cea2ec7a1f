//! Each rewritten weight gradient is s · v ⊗ (zᵀ dY), in 64 bits and from X and dY alone.

use super::{Case, config, graphs, settings};
use proptest::prelude::*;
use velora_passes::select::{Decision, Init};
use velora_testgen::{Contraction, Scale, random};

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

/// The v of a tensor, which must be the direction of X.
fn checked_direction<'c>(
    case: &'c Case,
    decision: &Decision,
    x: &[f64],
    features: usize,
) -> &'c [f64] {
    let groups = decision.settings.grouping.groups(features as i64) as usize;
    let size = features.div_ceil(groups);
    let tensor = &case.model.graph.value(decision.activation).name;
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
    v
}

/// The gradient of a scale is s · v · Σ z ∘ dY.
fn check_scale(case: &Case, decision: &Decision, site: &Scale) {
    let features = site.features as usize;
    let groups = decision.settings.grouping.groups(site.features) as usize;
    let size = features.div_ceil(groups);
    let (x, dy) = (case.values[&site.x].f(), case.values[&site.dy].f());
    let v = checked_direction(case, decision, x, features);
    let (mut sums, mut sizes) = (vec![0.0; features], vec![0.0; features]);
    for (row, out) in x.chunks(features).zip(dy.chunks(features)) {
        for (group, sub_token) in row.chunks(size).enumerate() {
            let products = || sub_token.iter().zip(v).map(|(x, v)| x * v);
            let (z, large) = (
                products().sum::<f64>(),
                products().map(f64::abs).sum::<f64>(),
            );
            for feature in group * size..group * size + sub_token.len() {
                sums[feature] += z * out[feature];
                sizes[feature] += large * out[feature].abs();
            }
        }
    }
    let found = case.new_values[&site.result].f();
    assert_eq!(found.len(), features);
    // Sums over a sub-token and over tokens, and a few products on the way.
    let roundings = (size + x.len() / features + 8) as f64;
    for (feature, found) in found.iter().enumerate() {
        let factor = decision.settings.scale * v[feature % size];
        let expected = factor * sums[feature];
        let tolerance = 1.01 * roundings * U * factor.abs() * sizes[feature];
        assert!(
            (found - expected).abs() <= tolerance,
            "the gradient of {} at {feature}: {found}, expected {expected} ± {tolerance}",
            site.parameter
        );
    }
}

fn check(case: &Case, decision: &Decision, site: &Contraction) {
    let (features, outputs) = (site.features as usize, site.outputs as usize);
    let groups = decision.settings.grouping.groups(site.features) as usize;
    let size = features.div_ceil(groups);
    let x = case.values[&site.x].f();
    let dy = case.values[&site.dy].f();
    let v = checked_direction(case, decision, x, features);

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
    let full = case.new_values.get(&site.result).map(|dw| dw.f().to_vec());
    // Where P leaves in its place, v ⊗ P without another rounding.
    let found = full.unwrap_or_else(|| {
        assert!(decision.gradient.route().is_some(), "{}", site.result);
        let p = case.new_values[&format!("{}.P", site.result)].f();
        assert_eq!(p.len(), groups * outputs);
        let entries = 0..features * outputs;
        let entry = entries.map(|at| match site.transposed {
            false => v[at / outputs % size] * p[at / outputs / size * outputs + at % outputs],
            true => v[at % features % size] * p[at / features * groups + at % features / size],
        });
        entry.collect()
    });
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
            let made = product(decision);
            let scale = case.made.scales.iter().find(|s| &s.product == made);
            let known = case.made.contractions.iter().find(|c| &c.product == made);
            match (known, scale) {
                (Some(site), None) => check(&case, decision, site),
                (None, Some(site)) => check_scale(&case, decision, site),
                _ => prop_assert!(false, "{made} is no contraction"),
            }
        }
        // None is overlooked.
        let scales = case.made.scales.iter().map(|s| (&s.product, &s.parameter));
        let weights = case.made.contractions.iter().map(|c| (&c.product, &c.parameter));
        for (made, parameter) in weights.chain(scales) {
            let found = case.outcome.decisions.iter().find(|d| product(d) == made);
            prop_assert!(found.is_some(), "{} is not found", made);
            prop_assert!(found.unwrap().site.is_some(), "{}: {}", made, found.unwrap().message);
            prop_assert_eq!(&graph.value(found.unwrap().parameter).name, parameter);
        }
    }
}
