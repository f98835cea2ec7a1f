//! The main job: from a model and what the user asked for to the rewritten model.
//!
//! `analyses → selection → compress → dead-code → adapt → hoist → derive → recompute → dead-code → schedule → pin`. What is hoisted depends on
//! what would be compressed, and the other way round: candidates are weighed as if every tensor that they
//! release were compressed, and the selection sees the halves as they will be. A model in which nothing
//! is rewritten or hoisted comes out as it went in, node for node.

use crate::adapt::base::Base;
use crate::manager::{Checks, Pass, PassError, PipelineError, Property, Ran, run};
use crate::select::{Decision, SelectError, Selection, select};
use crate::{adapt, compress, dead_code, derive, hoist, pin, recompute, schedule};
use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use thiserror::Error;
use velora_graph::analysis::buffers::Buffers;
use velora_graph::analysis::hoist::cut::Hoist;
use velora_graph::analysis::lifetimes::Sizes;
use velora_graph::analysis::partition::{Partition, is_copy, was_moved};
use velora_graph::analysis::roles::roles;
use velora_graph::analysis::{Analyses, AnalysisError, Settings};
use velora_graph::ir::{GraphError, Model, NodeId, Patch};
use velora_graph::shapes::{Context, ShapeErrors, Shapes, infer};

/// The names of the passes, in the order in which they run.
pub const PASSES: [&str; 8] = [
    compress::NAME,
    dead_code::NAME,
    adapt::NAME,
    hoist::NAME,
    derive::NAME,
    recompute::NAME,
    schedule::NAME,
    pin::NAME,
];

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is known of the model.
    pub settings: Settings,
    /// Which layers, and how.
    pub selection: Selection,
    /// Standard operators in the place of model-local functions.
    pub inline: bool,
    /// Backward work that needs forward values only in the forward half, where less is saved then.
    pub hoist: bool,
    /// Forward nodes to compute again in the backward half, by the names of their first outputs; and transposed
    /// weights derived from the weights. `None` leaves both alone.
    pub recompute: Option<BTreeSet<String>>,
    /// Value-free dependences that keep the schedule in any runtime.
    pub pin: bool,
    /// Adapters in the places of weights with factored gradients.
    pub adapter: Option<Adapter>,
    /// What is checked and shown on the way.
    pub checks: Checks,
}

/// How weights are adapted.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// How their bases are stored.
    pub base: Base,
    /// The folder of the model's external data.
    pub folder: Option<PathBuf>,
}

/// What became of a model.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The passes that ran, and the final model.
    pub ran: Ran,
    /// The analyses of the model that came in.
    pub before: Analyses,
    /// What became of each contraction, in terms of the model that came in.
    pub decisions: Vec<Decision>,
    /// What was moved into the forward half, in terms of the model that came in.
    pub hoists: Vec<Hoist>,
    /// The analyses of the model that came in, with what was moved in its new place and what is computed again as such;
    /// `None` where nothing is.
    pub moved: Option<Analyses>,
}

impl Outcome {
    /// The analyses of the model that came in, with everything where it is now.
    pub fn moved(&self) -> &Analyses {
        self.moved.as_ref().unwrap_or(&self.before)
    }
}

/// Why the job could not be done.
#[derive(Debug, Error)]
pub enum JobError {
    /// The model is no training graph, or contradicts itself.
    #[error(transparent)]
    Analysis(#[from] AnalysisError),
    /// The selection cannot be carried out.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The graph cannot be ordered.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A pass failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A node that cannot be computed again is to be.
    #[error(
        "'{tensor}' cannot be computed again: it {why}; expected the first output of a forward node that is a \
         function of its inputs"
    )]
    Recompute {
        /// What was named.
        tensor: String,
        /// Why not, as a clause.
        why: &'static str,
    },
}

/// Whether a model holds nodes that an earlier run wrote.
pub fn already_rewritten(model: &Model) -> bool {
    let mut nodes = model.graph.order().iter();
    nodes.any(|&id| {
        let node = model.graph.node(id);
        node.velora_op().is_some() || was_moved(node) || is_copy(node)
    })
}

/// Does the main job.
///
/// # Errors
/// [`JobError`] where the model or the selection cannot be handled.
pub fn optimise(model: &Model, options: &Options) -> Result<Outcome, JobError> {
    job(model, options, true)
}

/// The rewrite in the file's order, without the passes that only order nodes: for questions to which the
/// order does not matter.
///
/// # Errors
/// As [`optimise`].
pub fn rewrite(model: &Model, options: &Options) -> Result<Outcome, JobError> {
    job(model, options, false)
}

fn job(model: &Model, options: &Options, ordered: bool) -> Result<Outcome, JobError> {
    let before = Analyses::new(model, &options.settings)?;
    let done = carry_out(model, options, &before, ordered)?;
    Ok(Outcome {
        ran: done.ran,
        before,
        decisions: done.decisions,
        hoists: done.hoists,
        moved: done.moved,
    })
}

/// What the job makes of a model that has been analysed.
pub(crate) struct Done {
    pub(crate) ran: Ran,
    decisions: Vec<Decision>,
    hoists: Vec<Hoist>,
    moved: Option<Analyses>,
}

/// The main job on a model that has been analysed.
///
/// # Errors
/// As [`optimise`].
pub(crate) fn carry_out(
    model: &Model,
    options: &Options,
    before: &Analyses,
    ordered: bool,
) -> Result<Done, JobError> {
    let mut moved = None;
    if let Some(names) = options.recompute.as_ref().filter(|names| !names.is_empty()) {
        let nodes = recompute::listed(model, &before.partition, names);
        let nodes = nodes.map_err(|(tensor, why)| JobError::Recompute { tensor, why })?;
        moved = Some(before.recomputed(&model.graph, &nodes));
    }
    let now = moved.as_ref().unwrap_or(before);
    let mut decisions = select(&model.graph, now, &options.selection)?;
    let mut hoists = Vec::new();
    if options.hoist {
        hoists = hoist::choose(model, now, &decisions)?;
    }
    if !hoists.is_empty() {
        let moves = hoists.iter().flat_map(|hoist| &hoist.moves);
        let hoisted = now.hoisted(&model.graph, moves);
        decisions = select(&model.graph, &hoisted, &options.selection)?;
        moved = Some(hoisted);
    }
    let compress = Compress {
        analyses: before,
        decisions: &decisions,
        inline: options.inline,
    };
    let dead_code = DeadCode {
        idle_before: dead_code::idle(&model.graph),
    };
    let adapt = options.adapter.as_ref().map(|adapter| Adapt {
        settings: &options.settings,
        adapter,
    });
    let hoist = Hoisting {
        work: hoist::Work::new(&model.graph, &hoists),
    };
    let derive = Derive {
        settings: &options.settings,
    };
    let recompute = Recompute {
        settings: &options.settings,
        names: options.recompute.as_ref(),
    };
    let schedule = Schedule {
        settings: &options.settings,
    };
    let pin = Pin {
        settings: &options.settings,
    };
    let mut passes: Vec<&dyn Pass> = vec![];
    if decisions.iter().any(Decision::rewritten) {
        passes.push(&compress);
    }
    if !passes.is_empty() || !hoists.is_empty() || options.recompute.is_some() {
        passes.push(&dead_code);
        passes.extend(adapt.as_ref().map(|adapt| adapt as &dyn Pass));
        if options.hoist {
            passes.push(&hoist);
        }
        if options.recompute.is_some() {
            passes.extend([&derive as &dyn Pass, &recompute, &dead_code]);
        }
        if ordered {
            passes.push(&schedule);
        }
        if ordered && options.pin {
            passes.push(&pin);
        }
    }
    let ran = run(model.clone(), &passes, &options.checks)?;
    Ok(Done {
        ran,
        decisions,
        hoists,
        moved,
    })
}

/// The types of all values of a model.
///
/// # Errors
/// [`ShapeErrors`] where they contradict each other.
pub fn shapes(model: &Model, settings: &Settings) -> Result<Shapes, ShapeErrors> {
    let context = Context {
        opsets: &model.shell.opset_import,
        functions: &model.shell.functions,
        sizes: &settings.sizes,
    };
    infer(&model.graph, &context)
}

/// Bytes with a size put in for every open symbol: orders must be compared somewhere, and a step with
/// some batch and some sequence is nearer to the truth than one with a single token.
pub fn assumed_sizes(model: &Model, shapes: &Shapes) -> Sizes {
    Sizes::new(&model.graph, shapes, |_| ASSUMED_SIZE)
}

/// What an open symbol counts as while orders are compared.
pub const ASSUMED_SIZE: i64 = 64;

struct Compress<'a> {
    analyses: &'a Analyses,
    decisions: &'a [Decision],
    inline: bool,
}

impl Pass for Compress<'_> {
    fn name(&self) -> &'static str {
        compress::NAME
    }
    fn run(&self, model: &Model) -> Result<Patch, PassError> {
        Ok(compress::compress(
            model,
            self.analyses,
            self.decisions,
            self.inline,
        )?)
    }
}

struct DeadCode {
    idle_before: HashSet<String>,
}

impl Pass for DeadCode {
    fn name(&self) -> &'static str {
        dead_code::NAME
    }
    fn ensures(&self) -> &'static [Property] {
        &[Property::NoDeadCode]
    }
    fn run(&self, model: &Model) -> Result<Patch, PassError> {
        Ok(dead_code::dead_code(&model.graph, &self.idle_before))
    }
}

struct Adapt<'a> {
    settings: &'a Settings,
    adapter: &'a Adapter,
}

impl Pass for Adapt<'_> {
    fn name(&self) -> &'static str {
        adapt::NAME
    }
    fn keeps(&self) -> &'static [Property] {
        &[Property::NoDeadCode]
    }
    fn run(&self, model: &Model) -> Result<Patch, PassError> {
        let analyses = Analyses::new(model, self.settings)?;
        let Adapter { base, folder } = self.adapter;
        Ok(adapt::adapt(model, &analyses, *base, folder.as_deref())?)
    }
}

struct Hoisting {
    work: hoist::Work,
}

impl Pass for Hoisting {
    fn name(&self) -> &'static str {
        hoist::NAME
    }
    fn keeps(&self) -> &'static [Property] {
        &[Property::NoDeadCode]
    }
    fn run(&self, model: &Model) -> Result<Patch, PassError> {
        Ok(hoist::hoist(&model.graph, &self.work))
    }
}

struct Derive<'a> {
    settings: &'a Settings,
}

impl Pass for Derive<'_> {
    fn name(&self) -> &'static str {
        derive::NAME
    }
    fn keeps(&self) -> &'static [Property] {
        &[Property::NoDeadCode]
    }
    fn run(&self, model: &Model) -> Result<Patch, PassError> {
        let partition = partition(model, self.settings)?;
        Ok(derive::derive(&model.graph, &partition))
    }
}

struct Recompute<'a> {
    settings: &'a Settings,
    names: Option<&'a BTreeSet<String>>,
}

impl Pass for Recompute<'_> {
    fn name(&self) -> &'static str {
        recompute::NAME
    }
    fn run(&self, model: &Model) -> Result<Patch, PassError> {
        let partition = partition(model, self.settings)?;
        let named = |id: &NodeId| {
            let name = recompute::first(&model.graph, *id);
            name.is_some_and(|name| self.names.is_some_and(|names| names.contains(name)))
        };
        let again = model.graph.order().iter().copied().filter(named);
        Ok(recompute::recompute(
            &model.graph,
            &partition,
            &again.collect(),
        )?)
    }
}

/// The halves of a model that some passes have changed.
fn partition(model: &Model, settings: &Settings) -> Result<Partition, AnalysisError> {
    Ok(Partition::new(
        &model.graph,
        &roles(&model.graph, &settings.hints)?,
    ))
}

struct Schedule<'a> {
    settings: &'a Settings,
}

impl Pass for Schedule<'_> {
    fn name(&self) -> &'static str {
        schedule::NAME
    }
    fn requires(&self) -> &'static [Property] {
        &[Property::NoDeadCode]
    }
    fn ensures(&self) -> &'static [Property] {
        &[Property::Scheduled]
    }
    fn keeps(&self) -> &'static [Property] {
        &[Property::NoDeadCode]
    }
    fn run(&self, model: &Model) -> Result<Patch, PassError> {
        let sizes = assumed_sizes(model, &shapes(model, self.settings)?);
        let buffers = Buffers::new(&model.graph);
        let schedule = schedule::schedule(&model.graph, &buffers, &sizes)?;
        Ok(schedule::reorder(&model.graph, &schedule))
    }
}

struct Pin<'a> {
    settings: &'a Settings,
}

impl Pass for Pin<'_> {
    fn name(&self) -> &'static str {
        pin::NAME
    }
    fn requires(&self) -> &'static [Property] {
        &[Property::Scheduled]
    }
    fn keeps(&self) -> &'static [Property] {
        &[Property::NoDeadCode, Property::Scheduled]
    }
    fn run(&self, model: &Model) -> Result<Patch, PassError> {
        let sizes = assumed_sizes(model, &shapes(model, self.settings)?);
        // Sizes that were given decide what is worth a pin; the file stays one for every size.
        let open = Settings::default();
        Ok(pin::pin(&model.graph, &shapes(model, &open)?, &sizes))
    }
}
