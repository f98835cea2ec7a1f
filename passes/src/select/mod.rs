//! Which sites are rewritten.
//!
//! A saved activation is freed only where *every* backward reader of it is rewritten. By default
//! (`freeable`) the sites of exactly those activations are chosen; `paper` and `all` choose sites
//! whatever else keeps the tensor, which saves computation and perhaps no bytes. A site is never
//! chosen where its compressed form would not be smaller, where the tensor lives in any case (a
//! graph input, a constant, an output), or where its type or layout cannot be compressed.

mod factor;
mod fit;
mod paper;
mod reason;
mod refusal;
mod settings;

pub use paper::{Role, role};
pub use reason::Reason;
use refusal::{Cut, less_than_a_page, refusal};
pub(crate) use refusal::{PAGE, element_bytes};
pub use settings::{
    DEFAULT_DECAY, Directions, Gradients, Grouping, Init, LayerPlan, LayerSettings, Preset,
    Selection, Storage, sub_token_size,
};

use std::collections::BTreeMap;
use velora_graph::analysis::Analyses;
use velora_graph::analysis::saved::{Reader, readers};
use velora_graph::analysis::sites::route::Route;
use velora_graph::analysis::sites::{Kind, Obstacle, Site, sites_behind};
use velora_graph::ir::{Graph, NodeId, ValueId};

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
    /// The kind of layer.
    pub kind: Kind,
    /// The node that multiplies the activation by a gradient.
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
    /// In which form the gradient leaves the graph.
    pub gradient: GradientForm,
}

/// In which form a gradient leaves the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GradientForm {
    /// As dW, as was asked for.
    Full,
    /// As dW though P was asked for; why, as a clause.
    Unfactored(String),
    /// As P and v, along a way on which nothing needs dW.
    Factored(Route),
}

impl GradientForm {
    /// The way of a factored gradient.
    pub fn route(&self) -> Option<&Route> {
        match self {
            GradientForm::Factored(route) => Some(route),
            _ => None,
        }
    }
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
    /// A pattern that matches nothing.
    #[error(
        "{option} {pattern} matches none of the layers, which are {}{}",
        .layers.iter().take(6).cloned().collect::<Vec<_>>().join(", "),
        match .layers.len() { 0..=6 => String::new(), n => format!(" and {} more", n - 6) }
    )]
    Pattern {
        /// The option.
        option: &'static str,
        /// The pattern.
        pattern: String,
        /// The layers that it could match.
        layers: Vec<String>,
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
    fit::check(graph, &analyses.sites, selection)?;
    let sites = &analyses.sites;
    let mut wanted: BTreeMap<NodeId, Wish> = BTreeMap::new();
    let mut cuts: BTreeMap<ValueId, Vec<Cut>> = BTreeMap::new();
    for site in &sites.sites {
        cuts.entry(site.activation)
            .or_default()
            .push(Cut::of(analyses, site));
    }
    for site in &sites.sites {
        let cuts = cuts.get(&site.activation).map_or(&[][..], Vec::as_slice);
        let wish = wish(graph, analyses, selection, site, cuts);
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
            kind: site.kind,
            node: site.product,
            activation: site.activation,
            site: Some(site.clone()),
            reason,
            message,
            settings,
            kept_alive_by,
            gradient: GradientForm::Full,
        });
    }
    for unfit in &sites.unfit {
        let reason = match unfit.obstacle {
            Obstacle::Layout => Reason::Layout,
            Obstacle::Hidden => Reason::Hidden,
            Obstacle::NothingSaved => Reason::NothingSaved,
        };
        let all = keepers.get(&unfit.activation).into_iter().flatten();
        // What keeps the indices of an embedding alive is no concern of its layer.
        let others =
            all.filter(|k| k.node != Some(unfit.product) && reason != Reason::NothingSaved);
        decisions.push(Decision {
            parameter: unfit.parameter,
            kind: unfit.kind,
            node: unfit.product,
            activation: unfit.activation,
            site: None,
            reason,
            message: unfit.why.to_owned(),
            settings: selection.settings(&graph.value(unfit.parameter).name),
            kept_alive_by: others.cloned().collect(),
            gradient: GradientForm::Full,
        });
    }
    decisions.sort_by_key(|d| d.node);
    agree(graph, &decisions)?;
    factor::decide(graph, analyses, &mut decisions);
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

/// `cuts`: how each site of the activation reads it.
fn wish(
    graph: &Graph,
    analyses: &Analyses,
    selection: &Selection,
    site: &Site,
    cuts: &[Cut],
) -> Wish {
    if let Some((reason, message)) = refusal(graph, analyses, selection, site, cuts) {
        return Wish::No(reason, message);
    }
    let name = &graph.value(site.parameter).name;
    let not = |why: &str| Wish::No(Reason::NotSelected, why.to_owned());
    // P of an earlier rewrite is a product of z and dY, and looks like a gradient itself.
    if graph.node(site.product).velora_op().is_some() {
        return not("an earlier rewrite made it");
    }
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
        preset @ (Preset::Paper | Preset::Value | Preset::Down) => {
            let (roles, other) = match preset {
                Preset::Value => (&[Role::Value][..], "it is no value projection"),
                Preset::Down => (&[Role::Down][..], "it is no MLP down projection"),
                _ => (
                    &[Role::Value, Role::Down][..],
                    "it is neither a value nor an MLP down projection",
                ),
            };
            match role(graph, &analyses.partition, site) {
                Some(role) if roles.contains(&role) => Wish::Rewrite { forced: true },
                _ => not(other),
            }
        }
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
        "LSTMGrad" | "GRUGrad" | "ConvGrad" => {
            "computes the gradients of its layer from it".to_owned()
        }
        "If" | "Loop" | "Scan" => "reads it in a nested graph".to_owned(),
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
    let mut details = String::new();
    if padding > 0 {
        details += &format!(", {padding} of padding");
    }
    if settings.rank > 1 {
        details += &format!(", {} directions", settings.rank);
    }
    if settings.directions == Directions::Group {
        details += ", each group with its own";
    }
    if settings.storage != Storage::Activation {
        details += &format!(", stored as {}", settings.storage.name());
    }
    let kept = match kept {
        [] => String::new(),
        _ => format!(
            "; frees nothing: its input is kept alive by {}",
            names(graph, kept)
        ),
    };
    format!("{groups} groups of {size}{details}{kept}")
}

/// Layers that share a tensor share its compressed form.
fn agree(graph: &Graph, decisions: &[Decision]) -> Result<(), SelectError> {
    let mut first: BTreeMap<ValueId, &Decision> = BTreeMap::new();
    for decision in decisions.iter().filter(|d| d.rewritten()) {
        let known = first.entry(decision.activation).or_insert(decision);
        let form = |d: &Decision| {
            let features = d.site.as_ref().map_or(1, |s| s.features);
            let settings = d.settings;
            LayerSettings {
                grouping: Grouping::Groups(settings.grouping.groups(features)),
                // Each gradient has its own factor and form.
                scale: 1.0,
                gradients: Gradients::Full,
                seed: if settings.init.is_drawn() {
                    settings.seed
                } else {
                    0
                },
                decay: match settings.init {
                    Init::RunningAverage => settings.decay,
                    _ => DEFAULT_DECAY,
                },
                ..settings
            }
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
