//! Settings that cannot be meant for this graph.

use super::{Grouping, LayerSettings, SelectError, Selection, sub_token_size};
use regex::{Regex, RegexSet};
use std::collections::BTreeMap;
use velora_graph::analysis::sites::Sites;
use velora_graph::ir::Graph;

/// Refuses patterns that match no layer, and settings that a layer which they name, or every layer, is
/// too narrow for.
///
/// # Errors
/// [`SelectError`].
pub(super) fn check(
    graph: &Graph,
    sites: &Sites,
    selection: &Selection,
) -> Result<(), SelectError> {
    let name = |parameter| graph.value(parameter).name.as_str();
    let mut widths: BTreeMap<&str, i64> = BTreeMap::new();
    for site in &sites.sites {
        let width = widths.entry(name(site.parameter)).or_default();
        *width = site.features.max(*width);
    }
    let unfit = sites.unfit.iter().map(|u| name(u.parameter));
    let all: Vec<&str> = widths.keys().copied().chain(unfit).collect();
    // A graph without a layer is told so in other words.
    if !all.is_empty() {
        pattern("--include", &selection.include, &all)?;
        pattern("--exclude", &selection.exclude, &all)?;
    }
    for (layer, plan) in &selection.layers {
        let own = plan.grouping.is_some() || plan.rank.is_some();
        if let Some(&features) = widths.get(layer.as_str())
            && own
            && plan.rewrite != Some(false)
        {
            too_many(&selection.settings(layer), features, layer)?;
        }
    }
    match widths.values().max() {
        Some(&widest) if selection.chosen => too_many(&selection.defaults, widest, "every layer"),
        _ => Ok(()),
    }
}

fn pattern(option: &'static str, set: &RegexSet, layers: &[&str]) -> Result<(), SelectError> {
    for pattern in set.patterns() {
        let matches = Regex::new(pattern).is_ok_and(|r| layers.iter().any(|l| r.is_match(l)));
        if !matches {
            return Err(SelectError::Pattern {
                option,
                pattern: pattern.clone(),
                layers: layers.iter().map(|l| (*l).to_owned()).collect(),
            });
        }
    }
    Ok(())
}

/// Refuses more groups, longer sub-tokens or more directions than there are features for.
fn too_many(settings: &LayerSettings, features: i64, layer: &str) -> Result<(), SelectError> {
    let wrong = |setting, value: i64, expected| {
        Err(SelectError::Setting {
            setting,
            value: value.to_string(),
            layer: format!("{layer} (of {features} features at most)"),
            expected,
        })
    };
    match settings.grouping {
        Grouping::Groups(groups) if groups > features => {
            return wrong("the number of groups", groups, "no more than features");
        }
        Grouping::SubTokenSize(size) if size > features => {
            return wrong("the sub-token size", size, "no more than features");
        }
        _ => {}
    }
    let size = sub_token_size(features, settings.grouping.groups(features));
    match settings.rank > size {
        true => wrong(
            "the rank",
            settings.rank,
            "no more than features in a sub-token",
        ),
        false => Ok(()),
    }
}
