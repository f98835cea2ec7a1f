//! What the user asks for: how layers are compressed, and which.

use super::SelectError;
use regex::RegexSet;
use std::collections::BTreeMap;

/// How directions are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// The normalised mean over the sub-tokens of the current batch, computed in the graph.
    BatchAverage,
    /// A fixed random unit vector.
    Random,
    /// All entries 1/√M.
    None,
}

impl Init {
    /// The name on the command line, in reports and in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Init::BatchAverage => "batch-average",
            Init::Random => "random",
            Init::None => "none",
        }
    }
}

/// How wide a token is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// G, the number of groups.
    Groups(i64),
    /// M, the number of features in a group.
    SubTokenSize(i64),
}

impl Grouping {
    /// G for D features.
    pub fn groups(self, features: i64) -> i64 {
        match self {
            Grouping::Groups(groups) => groups,
            Grouping::SubTokenSize(size) => div_ceil(features, size),
        }
    }
}

/// M, the features in one sub-token: ⌈D / G⌉, the last sub-token padded with zeros.
pub fn sub_token_size(features: i64, groups: i64) -> i64 {
    div_ceil(features, groups)
}

/// Both at least 1.
fn div_ceil(a: i64, b: i64) -> i64 {
    a / b + i64::from(a % b != 0)
}

/// How one layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSettings {
    /// The grouping of its features.
    pub grouping: Grouping,
    /// The kind of direction.
    pub init: Init,
    /// What dW is multiplied by.
    pub scale: f64,
    /// Seed of a random direction.
    pub seed: u64,
}

/// What one layer's plan says over the settings of all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerPlan {
    /// Whether it is to be rewritten (whatever else keeps its tensor) or left alone.
    pub rewrite: Option<bool>,
    /// Its own settings, each where given.
    pub grouping: Option<Grouping>,
    /// Its own kind of direction.
    pub init: Option<Init>,
    /// Its own factor of dW.
    pub scale: Option<f64>,
    /// Its own seed.
    pub seed: Option<u64>,
}

/// Which sites are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// All sites of every tensor whose backward readers can all be rewritten.
    Freeable,
    /// Value and MLP down projections, as in the paper.
    Paper,
    /// All sites.
    All,
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The preset.
    pub preset: Preset,
    /// Only parameters that match one of these, where any is given.
    pub include: RegexSet,
    /// No parameter that matches one of these.
    pub exclude: RegexSet,
    /// No tensor of fewer bytes. Sizes that are open count as large enough.
    pub min_bytes: i64,
    /// Settings of all layers.
    pub defaults: LayerSettings,
    /// By parameter.
    pub layers: BTreeMap<String, LayerPlan>,
}

impl Selection {
    /// The preset `freeable` with one grouping for all layers.
    pub fn freeable(grouping: Grouping) -> Self {
        Selection {
            preset: Preset::Freeable,
            include: RegexSet::empty(),
            exclude: RegexSet::empty(),
            min_bytes: 0,
            defaults: LayerSettings {
                grouping,
                init: Init::BatchAverage,
                scale: 1.0,
                seed: 0,
            },
            layers: BTreeMap::new(),
        }
    }

    pub(super) fn plan(&self, parameter: &str) -> Option<&LayerPlan> {
        self.layers.get(parameter)
    }

    /// The settings of one layer.
    pub fn settings(&self, parameter: &str) -> LayerSettings {
        let plan = self.plan(parameter).cloned().unwrap_or_default();
        LayerSettings {
            grouping: plan.grouping.unwrap_or(self.defaults.grouping),
            init: plan.init.unwrap_or(self.defaults.init),
            scale: plan.scale.unwrap_or(self.defaults.scale),
            seed: plan.seed.unwrap_or(self.defaults.seed),
        }
    }
}

impl Selection {
    /// Refuses settings that no layer can have.
    pub(super) fn check(&self) -> Result<(), SelectError> {
        let defaults = &self.defaults;
        check("all layers", Some(defaults.grouping), Some(defaults.scale))?;
        let layers = self.layers.iter();
        { layers }.try_for_each(|(layer, plan)| check(layer, plan.grouping, plan.scale))
    }
}

fn check(layer: &str, grouping: Option<Grouping>, scale: Option<f64>) -> Result<(), SelectError> {
    let wrong = |setting, value: &dyn std::fmt::Display, expected| {
        Err(SelectError::Setting {
            setting,
            value: value.to_string(),
            layer: layer.to_owned(),
            expected,
        })
    };
    match grouping {
        Some(Grouping::Groups(number)) if number < 1 => {
            return wrong("the number of groups", &number, "at least 1");
        }
        Some(Grouping::SubTokenSize(number)) if number < 1 => {
            return wrong("the sub-token size", &number, "at least 1");
        }
        _ => {}
    }
    match scale {
        // It is written as a 32-bit float.
        Some(scale) if !(scale as f32).is_finite() => {
            wrong("the scale", &scale, "a finite 32-bit float")
        }
        _ => Ok(()),
    }
}
