//! What the user asks for: how layers are compressed, and which.

use super::SelectError;
use regex::RegexSet;
use std::collections::BTreeMap;

/// How directions are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// The normalised mean over the sub-tokens of the current batch, computed in the graph.
    BatchAverage,
    /// The normalised mean over the sub-tokens of the first batch, a constant from then on.
    FirstBatch,
    /// The normalised moving average of the means of all batches so far, handed from step to step.
    RunningAverage,
    /// The first right singular vectors of the matrix of sub-tokens of a batch, constants.
    Svd,
    /// A fixed random unit vector, uniform on the sphere.
    Random,
    /// A fixed random unit vector with positive entries: numbers from 0 to 1, normalised.
    Uniform,
    /// All entries 1/√M.
    None,
}

impl Init {
    /// The name on the command line, in reports and in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Init::BatchAverage => "batch-average",
            Init::FirstBatch => "first-batch",
            Init::RunningAverage => "running-average",
            Init::Svd => "svd",
            Init::Uniform => "uniform",
            Init::Random => "random",
            Init::None => "none",
        }
    }

    /// Whether the direction is a mean, so that there is one and no second.
    pub fn is_mean(self) -> bool {
        matches!(
            self,
            Init::BatchAverage | Init::FirstBatch | Init::RunningAverage
        )
    }

    /// Whether the direction is computed in the graph, in every step.
    pub fn is_computed(self) -> bool {
        matches!(self, Init::BatchAverage | Init::RunningAverage)
    }

    /// Whether it is drawn from a seed.
    pub fn is_drawn(self) -> bool {
        matches!(self, Init::Random | Init::Uniform)
    }

    /// Whether it stands in the file as a constant that a batch has yet to fill.
    pub fn is_calibrated(self) -> bool {
        matches!(self, Init::FirstBatch | Init::Svd)
    }
}

/// How the compressed activation is stored between the halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the element type of the activation.
    Activation,
    /// As 16-bit floats.
    Float16,
    /// As 32-bit floats with 16 bits cut off.
    BFloat16,
    /// As 8-bit integers, with one 32-bit scale for each token.
    Int8,
}

impl Storage {
    /// All of them.
    pub const ALL: [Storage; 4] = [
        Storage::Activation,
        Storage::Float16,
        Storage::BFloat16,
        Storage::Int8,
    ];

    /// The name on the command line, in plans and in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Storage::Activation => "activation",
            Storage::Float16 => "f16",
            Storage::BFloat16 => "bf16",
            Storage::Int8 => "int8",
        }
    }
}

/// Which sub-tokens share a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directions {
    /// All of them.
    Shared,
    /// Those that stand at one place of their tokens: one direction for each group.
    Group,
}

impl Directions {
    /// The name on the command line, in plans and in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Directions::Shared => "shared",
            Directions::Group => "group",
        }
    }
}

/// In which form the gradient of a rewritten weight leaves the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradients {
    /// As dW, of the weight's shape.
    Full,
    /// As P and v with dW = v ⊗ P, where nothing but compressed activations makes it.
    Factored,
}

impl Gradients {
    /// The name on the command line and in plans.
    pub fn name(self) -> &'static str {
        match self {
            Gradients::Full => "full",
            Gradients::Factored => "factored",
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
    /// How z is stored.
    pub storage: Storage,
    /// R, the number of directions that a sub-token is projected on.
    pub rank: i64,
    /// Which sub-tokens share directions.
    pub directions: Directions,
    /// How much of a running average stays in a step, from 0 to 1.
    pub decay: f64,
    /// In which form the gradient leaves the graph.
    pub gradients: Gradients,
}

impl LayerSettings {
    /// The settings that nothing else is said about.
    pub fn new(grouping: Grouping) -> Self {
        LayerSettings {
            grouping,
            init: Init::BatchAverage,
            scale: 1.0,
            seed: 0,
            storage: Storage::Activation,
            rank: 1,
            directions: Directions::Shared,
            decay: DEFAULT_DECAY,
            gradients: Gradients::Full,
        }
    }

    /// G·R, the numbers that stand for a token of D features; `None` where they do not fit 64 bits.
    pub fn width(&self, features: i64) -> Option<i64> {
        self.grouping.groups(features).checked_mul(self.rank)
    }

    /// The numbers of all directions of a tensor: M, or R·M, or G·R·M.
    pub fn direction_length(&self, features: i64) -> Option<i64> {
        let groups = self.grouping.groups(features);
        let shared = sub_token_size(features, groups.max(1)).checked_mul(self.rank)?;
        match self.directions {
            Directions::Shared => Some(shared),
            Directions::Group => shared.checked_mul(groups),
        }
    }

    /// Whether v is one vector of M entries, rather than several.
    pub fn has_one_direction(&self) -> bool {
        self.rank == 1 && self.directions == Directions::Shared
    }

    /// The bytes that a token takes once compressed; `size` is that of an element of the activation.
    pub fn bytes_per_token(&self, features: i64, size: i64) -> Option<i64> {
        let width = self.width(features)?;
        match self.storage {
            Storage::Activation => width.checked_mul(size),
            Storage::Float16 | Storage::BFloat16 => width.checked_mul(2),
            Storage::Int8 => width.checked_add(4),
        }
    }
}

/// How much of a running average stays, where nothing else is said.
pub const DEFAULT_DECAY: f64 = 0.9;

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
    /// Its own storage of z.
    pub storage: Option<Storage>,
    /// Its own number of directions.
    pub rank: Option<i64>,
    /// Its own sharing of directions.
    pub directions: Option<Directions>,
    /// Its own decay of a running average.
    pub decay: Option<f64>,
    /// Its own form of the gradient.
    pub gradients: Option<Gradients>,
}

/// Which sites are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// All sites of every tensor whose backward readers can all be rewritten.
    Freeable,
    /// Value and MLP down projections, as in the paper.
    Paper,
    /// Value projections.
    Value,
    /// MLP down projections.
    Down,
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
    /// Whether the user chose those, so that settings which fit no layer at all are a mistake.
    pub chosen: bool,
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
            defaults: LayerSettings::new(grouping),
            chosen: false,
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
            storage: plan.storage.unwrap_or(self.defaults.storage),
            rank: plan.rank.unwrap_or(self.defaults.rank),
            directions: plan.directions.unwrap_or(self.defaults.directions),
            decay: plan.decay.unwrap_or(self.defaults.decay),
            gradients: plan.gradients.unwrap_or(self.defaults.gradients),
        }
    }
}

impl Selection {
    /// Refuses settings that no layer can have.
    pub(super) fn check(&self) -> Result<(), SelectError> {
        check("all layers", &self.defaults)?;
        let mut layers = self.layers.keys();
        layers.try_for_each(|layer| check(layer, &self.settings(layer)))
    }
}

fn check(layer: &str, settings: &LayerSettings) -> Result<(), SelectError> {
    let wrong = |setting, value: &dyn std::fmt::Display, expected| {
        Err(SelectError::Setting {
            setting,
            value: value.to_string(),
            layer: layer.to_owned(),
            expected,
        })
    };
    match settings.grouping {
        Grouping::Groups(number) if number < 1 => {
            return wrong("the number of groups", &number, "at least 1");
        }
        Grouping::SubTokenSize(number) if number < 1 => {
            return wrong("the sub-token size", &number, "at least 1");
        }
        _ => {}
    }
    // It is written as a 32-bit float.
    if !(settings.scale as f32).is_finite() {
        return wrong("the scale", &settings.scale, "a finite 32-bit float");
    }
    if settings.rank < 1 {
        return wrong("the rank", &settings.rank, "at least 1");
    }
    if settings.rank > 1 && settings.init.is_mean() {
        return wrong(
            "the rank",
            &settings.rank,
            "1 with a mean, which is one direction (svd, random, uniform and none have more)",
        );
    }
    if settings.directions == Directions::Group && settings.init == Init::None {
        let same = "shared with init none, whose directions are the same for every group";
        return wrong("directions", &settings.directions.name(), same);
    }
    if settings.gradients == Gradients::Factored && settings.init.is_computed() {
        let fixed = "first-batch, svd, random, uniform or none with factored gradients, whose direction may \
                     not change from step to step";
        return wrong("init", &settings.init.name(), fixed);
    }
    if settings.gradients == Gradients::Factored && settings.rank > 1 {
        let one = "1 with factored gradients: a mean square of several terms has no factors";
        return wrong("the rank", &settings.rank, one);
    }
    if !(0.0..1.0).contains(&settings.decay) {
        return wrong("the decay", &settings.decay, "from 0 to below 1");
    }
    Ok(())
}
