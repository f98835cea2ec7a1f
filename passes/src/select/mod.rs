//! Which sites are rewritten.
//!
//! A saved activation is freed only where *every* backward reader of it is rewritten. By default
//! (`freeable`) the sites of exactly those activations are chosen; `paper` and `all` choose sites
//! whatever else keeps the tensor, which saves computation and perhaps no bytes. A site is never
//! chosen where its compressed form would not be smaller, where the tensor lives in any case (a
//! graph input, a constant, an output), or where its type or layout cannot be compressed.

mod paper;
mod reason;

pub use paper::{Role, role};
pub use reason::Reason;

use regex::RegexSet;
use std::collections::BTreeMap;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::saved::{Reader, readers};
use velora_graph::analysis::sites::{Site, sites_behind};
use velora_graph::ir::{Graph, NodeId, Origin, ValueId};
use velora_graph::shapes::DataType;

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

    fn plan(&self, parameter: &str) -> Option<&LayerPlan> {
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

/// A reader that keeps a tensor alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keeper {
    /// The reading node, or `None` where an output of the graph is the tensor.
    pub node: Option<NodeId>,
    /// Why it keeps the tensor, as a clause.
    pub why: String,
}

/// What became of one contraction.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The parameter.
    pub parameter: ValueId,
    /// The product node.
    pub node: NodeId,
    /// The buffer of its activation.
    pub activation: ValueId,
    /// The site, unless the contraction is none.
    pub site: Option<Site>,
    /// Rewritten, or why not.
    pub reason: Reason,
    /// The same as a sentence.
    pub message: String,
    /// How it is or would be compressed.
    pub settings: LayerSettings,
    /// Backward readers of the tensor that stay.
    pub kept_alive_by: Vec<Keeper>,
}

impl Decision {
    /// Whether the site is rewritten.
    pub fn rewritten(&self) -> bool {
        self.reason == Reason::Rewritten
    }
}

/// Why a selection cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Layers that share a tensor share its compressed form.
    #[error(
        "layers '{first}' and '{second}' read one tensor, '{tensor}', and therefore share its \
         groups, init and seed; the plan gives them different ones"
    )]
    Disagree {
        /// The tensor.
        tensor: String,
        /// A parameter.
        first: String,
        /// Another.
        second: String,
    },
    /// A setting that no layer can have.
    #[error("{setting} is {value}, for {layer}; expected {expected}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What it was set to.
        value: String,
        /// The parameter, or all of them.
        layer: String,
        /// What it may be.
        expected: &'static str,
    },
}

impl Selection {
    /// Refuses settings that no layer can have.
    fn check(&self) -> Result<(), SelectError> {
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

/// Decides about every contraction, in the order of their products.
///
/// # Errors
/// [`SelectError`] where layers that share a tensor have settings that cannot be shared, or a setting is
/// one that no layer can have.
pub fn select(
    graph: &Graph,
    analyses: &Analyses,
    selection: &Selection,
) -> Result<Vec<Decision>, SelectError> {
    selection.check()?;
    let sites = &analyses.sites;
    let mut wanted: BTreeMap<NodeId, Wish> = BTreeMap::new();
    let mut widths: BTreeMap<ValueId, Vec<i64>> = BTreeMap::new();
    for site in &sites.sites {
        let widths = widths.entry(site.activation).or_default();
        widths.push(site.features);
    }
    for site in &sites.sites {
        let widths = widths.get(&site.activation).map_or(&[][..], Vec::as_slice);
        let wish = wish(graph, analyses, selection, site, widths);
        wanted.insert(site.product, wish);
    }
    let mut by_buffer: BTreeMap<ValueId, Vec<Reader>> = BTreeMap::new();
    let activations =
        (sites.sites.iter().map(|s| s.activation)).chain(sites.unfit.iter().map(|u| u.activation));
    for buffer in activations {
        by_buffer
            .entry(buffer)
            .or_insert_with(|| readers(graph, &analyses.partition, &analyses.buffers, buffer));
    }

    // A tensor that something else keeps is left alone, unless the user wants it for its own sake.
    let mut keepers: BTreeMap<ValueId, Vec<Keeper>> = BTreeMap::new();
    for (&buffer, readers) in &by_buffer {
        keepers.insert(buffer, keepers_of(graph, analyses, &wanted, readers));
    }
    for site in &sites.sites {
        let kept = keepers.get(&site.activation).is_some_and(|k| !k.is_empty());
        if let Some(Wish::Rewrite { forced: false }) = wanted.get(&site.product)
            && kept
        {
            wanted.insert(site.product, Wish::No(Reason::KeptAlive, String::new()));
        }
    }
    // Sites given up keep their tensor as well; one more round names them all.
    for (&buffer, readers) in &by_buffer {
        keepers.insert(buffer, keepers_of(graph, analyses, &wanted, readers));
    }

    let mut decisions = Vec::new();
    for site in &sites.sites {
        let settings = selection.settings(&graph.value(site.parameter).name);
        let all = keepers.get(&site.activation).into_iter().flatten();
        let kept_alive_by: Vec<Keeper> = { all }
            .filter(|k| k.node != Some(site.product))
            .cloned()
            .collect();
        let (reason, message) = match wanted.remove(&site.product) {
            Some(Wish::Rewrite { .. }) => (
                Reason::Rewritten,
                rewritten_message(graph, site, &settings, &kept_alive_by),
            ),
            Some(Wish::No(Reason::KeptAlive, _)) => (
                Reason::KeptAlive,
                format!("kept alive by {}", names(graph, &kept_alive_by)),
            ),
            Some(Wish::No(reason, message)) => (reason, message),
            None => continue,
        };
        decisions.push(Decision {
            parameter: site.parameter,
            node: site.product,
            activation: site.activation,
            site: Some(site.clone()),
            reason,
            message,
            settings,
            kept_alive_by,
        });
    }
    for unfit in &sites.unfit {
        let all = keepers.get(&unfit.activation).into_iter().flatten();
        decisions.push(Decision {
            parameter: unfit.parameter,
            node: unfit.product,
            activation: unfit.activation,
            site: None,
            reason: Reason::Layout,
            message: unfit.why.to_owned(),
            settings: selection.settings(&graph.value(unfit.parameter).name),
            kept_alive_by: { all }
                .filter(|k| k.node != Some(unfit.product))
                .cloned()
                .collect(),
        });
    }
    decisions.sort_by_key(|d| d.node);
    agree(graph, &decisions)?;
    Ok(decisions)
}

/// What is to become of a site, before the other readers of its tensor are known.
enum Wish {
    /// `forced`: whatever keeps the tensor.
    Rewrite {
        forced: bool,
    },
    No(Reason, String),
}

/// `widths`: with how many features each site of the activation reads it.
fn wish(
    graph: &Graph,
    analyses: &Analyses,
    selection: &Selection,
    site: &Site,
    widths: &[i64],
) -> Wish {
    if let Some((reason, message)) = refusal(graph, analyses, selection, site, widths) {
        return Wish::No(reason, message);
    }
    let name = &graph.value(site.parameter).name;
    let not = |why: &str| Wish::No(Reason::NotSelected, why.to_owned());
    if selection.exclude.is_match(name) {
        return not("an --exclude pattern matches its name");
    }
    if !selection.include.is_empty() && !selection.include.is_match(name) {
        return not("no --include pattern matches its name");
    }
    // The command line's filters come first, or they could not be used with a plan.
    match selection.plan(name).and_then(|p| p.rewrite) {
        Some(true) => return Wish::Rewrite { forced: true },
        Some(false) => return not("the plan leaves it alone"),
        None => {}
    }
    match selection.preset {
        Preset::Freeable => match less_than_a_page(analyses, selection, graph, site) {
            Some(bytes) => Wish::No(
                Reason::NoSaving,
                format!("{bytes} bytes would be freed, less than a page of memory ({PAGE})"),
            ),
            None => Wish::Rewrite { forced: false },
        },
        Preset::All => Wish::Rewrite { forced: true },
        Preset::Paper => match role(graph, &analyses.partition, site) {
            Some(_) => Wish::Rewrite { forced: true },
            None => not("it is neither a value nor an MLP down projection"),
        },
    }
}

/// Why a site cannot be rewritten, whatever the user wants.
fn refusal(
    graph: &Graph,
    analyses: &Analyses,
    selection: &Selection,
    site: &Site,
    widths: &[i64],
) -> Option<(Reason, String)> {
    let says = |reason, message: &str| Some((reason, message.to_owned()));
    match graph.value(site.activation).origin {
        Origin::Node(..) if graph.is_constant(site.activation) => {
            return says(
                Reason::Constant,
                "its input is a constant, alive in any case",
            );
        }
        Origin::Node(..) => {}
        Origin::Input(_) => {
            return says(
                Reason::GraphInput,
                "its input is a graph input, alive in any case",
            );
        }
        _ => {
            return says(
                Reason::Constant,
                "its input is a constant, alive in any case",
            );
        }
    }
    let members = analyses.buffers.members(site.activation);
    if members.iter().any(|&v| graph.value(v).is_output) {
        return says(
            Reason::GraphOutput,
            "its input is an output of the graph, alive in any case",
        );
    }
    if analyses.shapes.of(site.input).data_type != Some(DataType::FLOAT) {
        return says(
            Reason::DataType,
            "its input is not a tensor of 32-bit floats",
        );
    }
    if let Some(other) = widths.iter().find(|&&w| w != site.features) {
        let message = format!(
            "its input is read with {} features here and {other} elsewhere",
            site.features
        );
        return Some((Reason::MixedFeatures, message));
    }
    if site.outputs.as_const().is_none() {
        return says(Reason::Layout, "its number of output features is open");
    }
    let settings = selection.settings(&graph.value(site.parameter).name);
    let groups = settings.grouping.groups(site.features);
    let size = sub_token_size(site.features, groups);
    if groups.checked_mul(size).is_none() {
        return says(Reason::Layout, "its padded width does not fit 64 bits");
    }
    if settings.init != Init::BatchAverage && size > LONGEST_CONSTANT {
        let message =
            format!("a constant direction of {size} numbers is larger than any file needs");
        return Some((Reason::Layout, message));
    }
    if !smaller(site, groups) {
        let message = match groups >= site.features {
            true => format!(
                "{groups} scalars in the place of {} features would save nothing",
                site.features
            ),
            false => "the compressed form and its direction would not be smaller than its input"
                .to_owned(),
        };
        return Some((Reason::NoSaving, message));
    }
    let bytes = analyses
        .shapes
        .bytes(site.activation)
        .and_then(|b| b.as_const());
    if bytes.is_some_and(|b| b < selection.min_bytes) {
        let message = format!("its input has fewer than {} bytes", selection.min_bytes);
        return Some((Reason::TooSmall, message));
    }
    None
}

/// The entries of a direction that is written into the file: 64 MiB, beyond which a declared size is a
/// mistake or an attack.
const LONGEST_CONSTANT: i64 = 1 << 24;

/// Memory comes in pages: a saving below one shows up nowhere, and its nodes cost time.
const PAGE: i64 = 4096;

/// What compressing a tensor would free, where that is known and less than a page.
fn less_than_a_page(
    analyses: &Analyses,
    selection: &Selection,
    graph: &Graph,
    site: &Site,
) -> Option<i64> {
    let settings = selection.settings(&graph.value(site.parameter).name);
    let groups = settings.grouping.groups(site.features);
    let size = sub_token_size(site.features, groups.max(1));
    let before = analyses.shapes.bytes(site.activation)?.as_const()?;
    let after = site
        .tokens
        .as_const()?
        .checked_mul(groups)?
        .checked_add(size)?
        .checked_mul(4)?;
    before.checked_sub(after).filter(|&freed| freed < PAGE)
}

/// Whether z and v together have fewer scalars than X: N·G + M < N·D, at one token or the number
/// that is known.
fn smaller(site: &Site, groups: i64) -> bool {
    let size = sub_token_size(site.features, groups.max(1));
    match site.tokens.as_const() {
        Some(tokens) => {
            let after = i128::from(tokens) * i128::from(groups) + i128::from(size);
            after < i128::from(tokens) * i128::from(site.features)
        }
        // An open number of tokens is taken to be large.
        None => groups < site.features,
    }
}

fn keepers_of(
    graph: &Graph,
    analyses: &Analyses,
    wanted: &BTreeMap<NodeId, Wish>,
    readers: &[Reader],
) -> Vec<Keeper> {
    let mut keepers = Vec::new();
    for reader in readers {
        match sites_behind(graph, &analyses.partition, &analyses.sites, reader) {
            None => keepers.push(Keeper {
                node: Some(reader.node),
                why: why(graph.node(reader.node).op()),
            }),
            Some(behind) => {
                for site in behind {
                    if let Some(Wish::No(reason, _)) = wanted.get(&site.product) {
                        let parameter = &graph.value(site.parameter).name;
                        let why = match reason {
                            Reason::KeptAlive => {
                                format!("computes the gradient of {parameter} from it")
                            }
                            reason => format!(
                                "computes the gradient of {parameter} from it, which is not rewritten ({})",
                                reason.code()
                            ),
                        };
                        keepers.push(Keeper {
                            node: Some(site.product),
                            why,
                        });
                    }
                }
            }
        }
    }
    keepers.sort_by_key(|k| k.node);
    keepers.dedup();
    keepers
}

/// Why a reader that is no site needs the values.
fn why(op: &str) -> String {
    match op {
        "ReluGrad" => "reads which outputs of the activation are positive".to_owned(),
        "TanhGrad" | "SigmoidGrad" | "SoftmaxGrad" | "SoftmaxGrad_13" | "LogSoftmaxGrad"
        | "LogSoftmaxGrad_13" => {
            "computes the derivative from the output of the activation".to_owned()
        }
        "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "Equal" => {
            "computes a mask from it".to_owned()
        }
        _ => "reads its values in backward".to_owned(),
    }
}

fn names(graph: &Graph, keepers: &[Keeper]) -> String {
    let name = |k: &Keeper| match k.node {
        Some(node) => format!(
            "{} ({})",
            graph.node(node).label(graph),
            graph.node(node).op()
        ),
        None => "the graph's outputs".to_owned(),
    };
    keepers.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn rewritten_message(
    graph: &Graph,
    site: &Site,
    settings: &LayerSettings,
    kept: &[Keeper],
) -> String {
    let groups = settings.grouping.groups(site.features);
    let size = sub_token_size(site.features, groups);
    let padding = groups * size - site.features;
    let padded = if padding > 0 {
        format!(", {padding} of padding")
    } else {
        String::new()
    };
    let kept = match kept {
        [] => String::new(),
        _ => format!(
            "; frees nothing: its input is kept alive by {}",
            names(graph, kept)
        ),
    };
    format!("{groups} groups of {size}{padded}{kept}")
}

/// Layers that share a tensor share its compressed form.
fn agree(graph: &Graph, decisions: &[Decision]) -> Result<(), SelectError> {
    let mut first: BTreeMap<ValueId, &Decision> = BTreeMap::new();
    for decision in decisions.iter().filter(|d| d.rewritten()) {
        let known = first.entry(decision.activation).or_insert(decision);
        let form = |d: &Decision| {
            let features = d.site.as_ref().map_or(1, |s| s.features);
            let seed = (d.settings.init == Init::Random).then_some(d.settings.seed);
            (d.settings.grouping.groups(features), d.settings.init, seed)
        };
        if form(known) != form(decision) {
            return Err(SelectError::Disagree {
                tensor: graph.value(decision.activation).name.clone(),
                first: graph.value(known.parameter).name.clone(),
                second: graph.value(decision.parameter).name.clone(),
            });
        }
    }
    Ok(())
}
