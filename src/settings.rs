//! The settings of every layer: the plan's for the layer, else the command line's, else the plan's
//! defaults, else the tool's.

use crate::cli::{Init, MethodArguments, SelectionArguments};
use crate::plan_file::{Defaults, LayerPlan, Plan, VERSION};
use regex::Regex;
use std::collections::BTreeMap;

/// Groups for each token where nothing says otherwise.
pub const DEFAULT_GROUPS: i64 = 32;

/// How the features of a token are divided into sub-tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// G, the number of sub-tokens; each has ⌈D / G⌉ features.
    Groups(i64),
    /// M, the features of a sub-token; there are ⌈D / M⌉.
    SubTokenSize(i64),
}

impl Grouping {
    fn of(groups: Option<i64>, sub_token_size: Option<i64>) -> Option<Grouping> {
        groups
            .map(Grouping::Groups)
            .or(sub_token_size.map(Grouping::SubTokenSize))
    }

    /// G and M for D features, all at least 1.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the rewrite takes groups only so far")
    )]
    pub fn sizes(self, features: i64) -> (i64, i64) {
        let divide = |by: i64| features / by.max(1) + i64::from(features % by.max(1) != 0);
        match self {
            Grouping::Groups(groups) => (groups, divide(groups)),
            Grouping::SubTokenSize(size) => (divide(size), size),
        }
    }

    /// G where it does not depend on D.
    pub fn groups(self) -> Option<i64> {
        match self {
            Grouping::Groups(groups) => Some(groups),
            Grouping::SubTokenSize(_) => None,
        }
    }
}

/// What the user said about rewriting a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing: `--select` decides.
    Selection,
    /// Rewrite it where possible, even where nothing is freed (`rewrite = true` in the plan).
    Rewrite,
    /// Leave it (`rewrite = false` in the plan, `--exclude`, or no match of `--include`).
    Leave,
}

/// The settings of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSettings {
    /// Whether to rewrite it.
    pub choice: Choice,
    /// How its features are grouped.
    pub grouping: Grouping,
    /// The kind of direction.
    pub init: Init,
    /// The factor on its weight gradient.
    pub scale: f64,
    /// The seed of its random direction.
    pub seed: u64,
}

/// The settings of all layers.
#[derive(Clone, Debug)]
pub struct Settings {
    defaults: LayerSettings,
    layers: BTreeMap<String, LayerPlan>,
    include: Vec<Regex>,
    exclude: Vec<Regex>,
}

impl Settings {
    /// Combines the command line with a plan.
    pub fn new(
        method: &MethodArguments,
        selection: &SelectionArguments,
        plan: Option<Plan>,
    ) -> Settings {
        let (below, layers) = match plan {
            Some(plan) => (plan.defaults, plan.layers),
            None => (Defaults::default(), Vec::new()),
        };
        let defaults = LayerSettings {
            choice: Choice::Selection,
            grouping: Grouping::of(method.groups, method.sub_token_size)
                .or(Grouping::of(below.groups, below.sub_token_size))
                .unwrap_or(Grouping::Groups(DEFAULT_GROUPS)),
            init: method.init.or(below.init).unwrap_or(Init::BatchAverage),
            scale: method.scale.or(below.scale).unwrap_or(1.0),
            seed: method.seed.or(below.seed).unwrap_or(0),
        };
        Settings {
            defaults,
            layers: (layers.into_iter())
                .map(|layer| (layer.param.clone(), layer))
                .collect(),
            include: selection.include.clone(),
            exclude: selection.exclude.clone(),
        }
    }

    /// The settings of layers that a plan says nothing about.
    pub fn defaults(&self) -> &LayerSettings {
        &self.defaults
    }

    /// The settings of the layer with that parameter.
    pub fn layer(&self, parameter: &str) -> LayerSettings {
        let matches = |patterns: &[Regex]| patterns.iter().any(|re| re.is_match(parameter));
        let included = self.include.is_empty() || matches(&self.include);
        let mut settings = self.defaults;
        if !included || matches(&self.exclude) {
            settings.choice = Choice::Leave;
        }
        let Some(layer) = self.layers.get(parameter) else {
            return settings;
        };
        match layer.rewrite {
            Some(false) => settings.choice = Choice::Leave,
            // The command line's filters win over the plan, or they could not be used with one.
            Some(true) if settings.choice == Choice::Selection => {
                settings.choice = Choice::Rewrite;
            }
            _ => {}
        }
        if let Some(grouping) = Grouping::of(layer.groups, layer.sub_token_size) {
            settings.grouping = grouping;
        }
        settings.init = layer.init.unwrap_or(settings.init);
        settings.scale = layer.scale.unwrap_or(settings.scale);
        settings.seed = layer.seed.unwrap_or(settings.seed);
        settings
    }

    /// The plan that gives the same settings without this command line: every layer with what
    /// became of it, in the given order. A parameter named twice counts once, rewritten if any is.
    pub fn plan<'a>(&self, layers: impl IntoIterator<Item = (&'a str, bool)>) -> Plan {
        let mut entries: Vec<LayerPlan> = Vec::new();
        let mut position = BTreeMap::new();
        for (parameter, rewritten) in layers {
            if let Some(entry) = position
                .get(parameter)
                .and_then(|&at: &usize| entries.get_mut(at))
            {
                entry.rewrite = entry.rewrite.map(|before| before || rewritten);
                continue;
            }
            position.insert(parameter, entries.len());
            let settings = self.layer(parameter);
            let (groups, sub_token_size) = keys(settings.grouping);
            entries.push(LayerPlan {
                param: parameter.to_owned(),
                rewrite: Some(rewritten),
                groups,
                sub_token_size,
                init: Some(settings.init),
                scale: Some(settings.scale),
                seed: Some(settings.seed),
            });
        }
        let (groups, sub_token_size) = keys(self.defaults.grouping);
        Plan {
            version: VERSION,
            defaults: Defaults {
                groups,
                sub_token_size,
                init: Some(self.defaults.init),
                scale: Some(self.defaults.scale),
                seed: Some(self.defaults.seed),
            },
            layers: entries,
        }
    }
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

    fn settings(options: &str, plan: &str) -> Settings {
        let line = format!("velora-opt m -o out {options}");
        let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
        let optimize = arguments.optimize.unwrap();
        let plan = (!plan.is_empty()).then(|| Plan::parse("p", plan).unwrap());
        Settings::new(&optimize.method, &optimize.selection, plan)
    }

    #[test]
    fn the_nearer_setting_wins() {
        let plan = "version = 1\n[defaults]\ngroups = 2\nseed = 3\nscale = 0.5\n\
                    [[layer]]\nparam = 'a'\nsub_token_size = 7\nrewrite = true\n\
                    [[layer]]\nparam = 'b'\nrewrite = false\n";
        let settings = settings("--groups 4 --seed 9", plan);
        let a = settings.layer("a");
        assert_eq!(
            (a.grouping, a.choice),
            (Grouping::SubTokenSize(7), Choice::Rewrite)
        );
        assert_eq!((a.seed, a.scale, a.init), (9, 0.5, Init::BatchAverage));
        let b = settings.layer("b");
        assert_eq!((b.grouping, b.choice), (Grouping::Groups(4), Choice::Leave));
        assert_eq!(settings.layer("c").choice, Choice::Selection);
    }

    #[test]
    fn filters_leave_what_they_do_not_let_through() {
        let plan = "version = 1\n[[layer]]\nparam = 'mlp.up'\nrewrite = true\n";
        let settings = settings("--include ^mlp --include head --exclude down$", plan);
        let choice = |name| settings.layer(name).choice;
        assert_eq!(choice("mlp.up"), Choice::Rewrite);
        assert_eq!(choice("head"), Choice::Selection);
        assert_eq!(choice("mlp.down"), Choice::Leave);
        assert_eq!(choice("attn.q"), Choice::Leave);
    }

    #[test]
    fn an_emitted_plan_gives_the_same_settings() {
        let before = settings(
            "--sub-token-size 6 --init random --seed 5 --scale 0.1",
            "version = 1\n[[layer]]\nparam = 'a'\ngroups = 3\ninit = 'none'\n",
        );
        let text = before.plan([("a", true), ("b", false), ("b", true), ("c", false)]);
        let after = settings("", &text.to_text().unwrap());
        for (name, choice) in [
            ("a", Choice::Rewrite),
            ("b", Choice::Rewrite),
            ("c", Choice::Leave),
            ("elsewhere", Choice::Selection),
        ] {
            let expected = LayerSettings {
                choice,
                ..before.layer(name)
            };
            assert_eq!(after.layer(name), expected, "{name}");
        }
    }

    #[test]
    fn groups_and_sub_token_sizes_round_up() {
        assert_eq!(Grouping::Groups(3).sizes(10), (3, 4));
        assert_eq!(Grouping::SubTokenSize(6).sizes(10), (2, 6));
        assert_eq!(Grouping::SubTokenSize(16).sizes(10), (1, 16));
    }
}
