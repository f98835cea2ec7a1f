//! What the user asked for, from the command line and a plan: the plan's settings for a layer, else
//! the command line's, else the plan's defaults, else the tool's.

use crate::cli::{
    Directions, Gradients, Init, MethodArguments, Select, SelectionArguments, Storage,
};
use crate::plan_file::{self, Defaults, Plan, VERSION};
use anyhow::{Context, Result};
use regex::{Regex, RegexSet};
use std::collections::BTreeMap;
use velora_passes::select::{
    self, DEFAULT_DECAY, Grouping, LayerPlan, LayerSettings, Preset, Selection,
};

/// Groups for each token where nothing says otherwise.
pub const DEFAULT_GROUPS: i64 = 32;

/// The command line's words for what the passes know by the same names.
macro_rules! same_names {
    ($kind:ident { $($name:ident),* }) => {
        impl From<$kind> for select::$kind {
            fn from(kind: $kind) -> Self {
                match kind {
                    $($kind::$name => select::$kind::$name),*
                }
            }
        }

        impl From<select::$kind> for $kind {
            fn from(kind: select::$kind) -> Self {
                match kind {
                    $(select::$kind::$name => $kind::$name),*
                }
            }
        }
    };
}

same_names!(Init {
    BatchAverage,
    FirstBatch,
    RunningAverage,
    Svd,
    Random,
    Uniform,
    None
});
same_names!(Storage {
    Activation,
    Float16,
    BFloat16,
    Int8
});
same_names!(Directions { Shared, Group });
same_names!(Gradients { Full, Factored });

/// What `inspect` asks: what could be freed with that grouping.
pub fn inspection(grouping: Grouping) -> Selection {
    Selection::freeable(grouping)
}

/// Combines the command line with a plan.
///
/// # Errors
/// Where the patterns together are too large to be compiled.
pub fn selection(
    method: &MethodArguments,
    arguments: &SelectionArguments,
    plan: Option<Plan>,
) -> Result<Selection> {
    let (below, layers) = match plan {
        Some(plan) => (plan.defaults, plan.layers),
        None => (Defaults::default(), Vec::new()),
    };
    let patterns = |list: &[Regex]| {
        let set = RegexSet::new(list.iter().map(Regex::as_str));
        set.context("--include and --exclude")
    };
    let gradients = method.gradients.or(below.gradients);
    let gradients = gradients.unwrap_or(match method.adapter {
        Some(_) => Gradients::Factored,
        None => Gradients::Full,
    });
    let usual_init = match gradients {
        Gradients::Full => Init::BatchAverage,
        // The mean as well, but one that stays.
        Gradients::Factored => Init::FirstBatch,
    };
    Ok(Selection {
        preset: match arguments.select {
            Select::Freeable => Preset::Freeable,
            Select::Paper => Preset::Paper,
            Select::Value => Preset::Value,
            Select::Down => Preset::Down,
            Select::All => Preset::All,
        },
        include: patterns(&arguments.include)?,
        exclude: patterns(&arguments.exclude)?,
        min_bytes: arguments.min_bytes,
        defaults: LayerSettings {
            grouping: grouping(method.groups, method.sub_token_size)
                .or(grouping(below.groups, below.sub_token_size))
                .unwrap_or(Grouping::Groups(DEFAULT_GROUPS)),
            init: method.init.or(below.init).unwrap_or(usual_init).into(),
            scale: method.scale.or(below.scale).unwrap_or(1.0),
            seed: method.seed.or(below.seed).unwrap_or(0),
            storage: method
                .storage
                .or(below.storage)
                .unwrap_or(Storage::Activation)
                .into(),
            rank: method.rank.or(below.rank).unwrap_or(1),
            directions: method
                .directions
                .or(below.directions)
                .unwrap_or(Directions::Shared)
                .into(),
            decay: method.decay.or(below.decay).unwrap_or(DEFAULT_DECAY),
            gradients: gradients.into(),
        },
        chosen: method.groups.is_some() || method.sub_token_size.is_some(),
        layers: layers.into_iter().map(layer_plan).collect(),
    })
}

/// The grouping that two options ask for.
pub fn grouping(groups: Option<i64>, sub_token_size: Option<i64>) -> Option<Grouping> {
    let size = || sub_token_size.map(Grouping::SubTokenSize);
    groups.map(Grouping::Groups).or_else(size)
}

fn layer_plan(layer: plan_file::LayerPlan) -> (String, LayerPlan) {
    let plan = LayerPlan {
        rewrite: layer.rewrite,
        grouping: grouping(layer.groups, layer.sub_token_size),
        init: layer.init.map(Into::into),
        scale: layer.scale,
        seed: layer.seed,
        storage: layer.storage.map(Into::into),
        rank: layer.rank,
        directions: layer.directions.map(Into::into),
        decay: layer.decay,
        gradients: layer.gradients.map(Into::into),
    };
    (layer.param, plan)
}

/// The plan that gives the same settings without this command line: every layer with what became of
/// it, in the given order. A parameter named twice counts once, rewritten if any is.
pub fn plan<'a>(selection: &Selection, layers: impl IntoIterator<Item = (&'a str, bool)>) -> Plan {
    let mut entries: Vec<plan_file::LayerPlan> = Vec::new();
    let mut position = BTreeMap::new();
    for (parameter, rewritten) in layers {
        let known = position
            .get(parameter)
            .and_then(|&at: &usize| entries.get_mut(at));
        if let Some(entry) = known {
            entry.rewrite = entry.rewrite.map(|before| before || rewritten);
            continue;
        }
        position.insert(parameter, entries.len());
        let settings = selection.settings(parameter);
        let (groups, sub_token_size) = keys(settings.grouping);
        entries.push(plan_file::LayerPlan {
            param: parameter.to_owned(),
            rewrite: Some(rewritten),
            groups,
            sub_token_size,
            init: Some(settings.init.into()),
            scale: Some(settings.scale),
            seed: Some(settings.seed),
            storage: unusual(settings.storage, select::Storage::Activation).map(Into::into),
            rank: unusual(settings.rank, 1),
            directions: unusual(settings.directions, select::Directions::Shared).map(Into::into),
            decay: unusual(settings.decay, DEFAULT_DECAY),
            gradients: unusual(settings.gradients, select::Gradients::Full).map(Into::into),
        });
    }
    let (groups, sub_token_size) = keys(selection.defaults.grouping);
    Plan {
        version: VERSION,
        recompute: None,
        defaults: Defaults {
            groups,
            sub_token_size,
            init: Some(selection.defaults.init.into()),
            scale: Some(selection.defaults.scale),
            seed: Some(selection.defaults.seed),
            storage: unusual(selection.defaults.storage, select::Storage::Activation)
                .map(Into::into),
            rank: unusual(selection.defaults.rank, 1),
            directions: unusual(selection.defaults.directions, select::Directions::Shared)
                .map(Into::into),
            decay: unusual(selection.defaults.decay, DEFAULT_DECAY),
            gradients: unusual(selection.defaults.gradients, select::Gradients::Full)
                .map(Into::into),
        },
        layers: entries,
    }
}

/// What a plan says of a setting that is rarely another than the tool's own.
fn unusual<T: PartialEq>(setting: T, usual: T) -> Option<T> {
    (setting != usual).then_some(setting)
}

/// The two keys of a plan.
fn keys(grouping: Grouping) -> (Option<i64>, Option<i64>) {
    match grouping {
        Grouping::Groups(groups) => (Some(groups), None),
        Grouping::SubTokenSize(size) => (None, Some(size)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::Arguments;
    use clap::Parser;

    fn selected(options: &str, plan: &str) -> Selection {
        let line = format!("velora-opt m -o out {options}");
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        let optimize = arguments.optimize.unwrap();
        let plan = (!plan.is_empty()).then(|| Plan::parse("p", plan).unwrap());
        selection(&optimize.method, &optimize.selection, plan).unwrap()
    }

    #[test]
    fn the_nearer_setting_wins() {
        let plan = "version = 1\n[defaults]\ngroups = 2\nseed = 3\nscale = 0.5\n\
                    [[layer]]\nparam = 'a'\nsub_token_size = 7\nrewrite = true\n\
                    [[layer]]\nparam = 'b'\nrewrite = false\n";
        let selection = selected("--groups 4 --seed 9", plan);
        let a = selection.settings("a");
        assert_eq!(a.grouping, Grouping::SubTokenSize(7));
        assert_eq!(
            (a.seed, a.scale, a.init),
            (9, 0.5, select::Init::BatchAverage)
        );
        assert_eq!(selection.settings("b").grouping, Grouping::Groups(4));
        let rewrite = |name: &str| selection.layers.get(name).and_then(|l| l.rewrite);
        assert_eq!(
            [rewrite("a"), rewrite("b"), rewrite("c")],
            [Some(true), Some(false), None]
        );
    }

    #[test]
    fn an_emitted_plan_gives_the_same_settings() {
        let before = selected(
            "--sub-token-size 6 --init random --seed 5 --scale 0.1 --storage int8 --decay 0.5",
            "version = 1\n[[layer]]\nparam = 'a'\ngroups = 3\ninit = 'none'\nrank = 2\n\
             [[layer]]\nparam = 'b'\ninit = 'running-average'\ndirections = 'group'\n\
             [[layer]]\nparam = 'c'\ngradients = 'factored'\n",
        );
        let text = plan(
            &before,
            [("a", true), ("b", false), ("b", true), ("c", false)],
        );
        let after = selected("", &text.to_text().unwrap());
        for name in ["a", "b", "c", "elsewhere"] {
            assert_eq!(after.settings(name), before.settings(name), "{name}");
        }
        let rewrite = |name: &str| after.layers.get(name).and_then(|l| l.rewrite);
        assert_eq!(
            [rewrite("a"), rewrite("b"), rewrite("c")],
            [Some(true), Some(true), Some(false)]
        );
    }
}
