//! One plan for a whole step: what is kept, computed again, hoisted or compressed, under a bound.
//!
//! [`Planner::cut`] makes a plan for a price of time by one minimum cut ([`velora_graph::analysis::recompute::cut`]);
//! the prices tried are those of [`Planner::frontier`], from the plan that computes nothing dear again to the one that saves
//! the least. What a plan is worth is found by carrying it out ([`Planner::measure`]): the peak is that of the
//! schedule of the rewritten graph, not a sum of savings. `search.rs` finds the plan that keeps a bound. docs/planner.md
//! states the problem and what is approximate about this.

mod search;

pub use search::{Found, Goal, PlanError, SLOWDOWN};

use crate::hoist;
use crate::pipeline::{JobError, Options, assumed_sizes, carry_out, shapes};
use crate::recompute::{calls, first};
use crate::select::{Decision, Reason, element_bytes, select};
use std::collections::{BTreeMap, BTreeSet};
use velora_graph::analysis::buffers::Buffers;
use velora_graph::analysis::hoist::{Context, Held};
use velora_graph::analysis::lifetimes::{Lifetimes, Sizes};
use velora_graph::analysis::partition::{Partition, is_copy};
use velora_graph::analysis::recompute::blocks::borders;
use velora_graph::analysis::recompute::cost::{Class, Costs, Rates, class};
use velora_graph::analysis::recompute::cut::{Choice, Compressed, Problem, Terms};
use velora_graph::analysis::roles::roles;
use velora_graph::analysis::saved::{SavedActivation, saved_activations};
use velora_graph::analysis::sites::Form;
use velora_graph::analysis::{Analyses, AnalysisError, Settings};
use velora_graph::ir::{Graph, Model, NodeId, ValueId};

/// How much is computed again, where no bound is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    None,
    /// What takes little: element-wise chains, normalisations, masks, casts; no matrix product.
    Cheap,
    /// All that lies within a block but what enters it: gradient checkpointing.
    Layers,
    /// The same with checkpoints at every so manieth block only, about the square root of their number.
    Sqrt,
}

/// For the level `cheap`: a byte saved is worth so many bytes moved. An element-wise operation reads two tensors and
/// writes one.
const MOVED_FOR_A_BYTE: f64 = 8.0;

/// A price that decides between plans which save the same.
const TIE: f64 = 1e3;

/// Prices of the frontier, as powers of [`STEP`] around the rate of element-wise work, in bytes for a second.
const PRICES: std::ops::RangeInclusive<i32> = -10..=2;

/// The ratio of a price to the next.
const STEP: f64 = 2.5;

/// What becomes of a step's saved activations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Forward nodes that are computed again, of the model that came in.
    pub recompute: BTreeSet<NodeId>,
    /// Tensors of which the weight gradients read a compressed form.
    pub compress: BTreeSet<ValueId>,
}

impl From<Choice> for Plan {
    fn from(choice: Choice) -> Plan {
        Plan {
            recompute: choice.recompute,
            compress: choice.compress,
        }
    }
}

/// What a plan comes to, by the graph that it makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The most bytes that are alive at once, over the schedule.
    pub peak: i64,
    /// Bytes saved for backward.
    pub saved: i64,
    /// Seconds of a step, by the cost model.
    pub seconds: f64,
    /// Bytes that copies of forward nodes write: without views, and what stays within an element-wise chain.
    pub again_bytes: i64,
    /// Floating-point operations of matrix products among the copies.
    pub again_flops: f64,
}

/// A graph, ready to be planned.
pub struct Planner<'a> {
    model: &'a Model,
    options: &'a Options,
    analyses: &'a Analyses,
    sizes: &'a Sizes,
    rates: Rates,
    problem: Problem<'a>,
    /// What was decided about each contraction, if nothing were computed again.
    decisions: &'a [Decision],
    /// What may be compressed.
    compressed: BTreeMap<ValueId, Compressed>,
    /// Calls of functions of the model.
    calls: BTreeSet<NodeId>,
}

/// What a planner borrows: all of one model.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The analyses of the model that comes in.
    pub analyses: Analyses,
    /// Bytes at the sizes assumed.
    pub sizes: Sizes,
    held: BTreeMap<ValueId, Held>,
    decisions: Vec<Decision>,
}

impl Subject {
    /// Analyses a model.
    ///
    /// # Errors
    /// [`JobError`] where it is no training graph, or the selection cannot be carried out.
    pub fn new(model: &Model, options: &Options) -> Result<Subject, JobError> {
        let analyses = Analyses::new(model, &options.settings)?;
        let decisions = select(&model.graph, &analyses, &options.selection)?;
        let sizes = assumed_sizes(model, &analyses.shapes);
        let held = hoist::held(&analyses, &decisions, |tensor| sizes.of(tensor));
        Ok(Subject {
            analyses,
            sizes,
            held,
            decisions,
        })
    }
}

impl<'a> Planner<'a> {
    /// Prepares the cuts.
    ///
    /// # Errors
    /// [`JobError::Graph`] where the graph has no order.
    pub fn new(
        model: &'a Model,
        options: &'a Options,
        subject: &'a Subject,
        rates: Rates,
    ) -> Result<Self, JobError> {
        let Subject {
            analyses,
            sizes,
            held,
            decisions,
        } = subject;
        let context = Context {
            graph: &model.graph,
            partition: &analyses.partition,
            buffers: &analyses.buffers,
            shapes: &analyses.shapes,
            sizes,
            sites: &analyses.sites,
            held,
        };
        let costs = Costs::new(
            &model.graph,
            &analyses.partition,
            &analyses.shapes,
            sizes,
            rates,
        );
        let compressed = held.iter().map(|(&tensor, held)| {
            let of_tensor = decisions.iter().filter(|d| d.activation == tensor);
            let seconds = of_tensor.map(|d| faster(analyses, sizes, &rates, d)).sum();
            let bytes = held.then;
            (tensor, Compressed { bytes, seconds })
        });
        let compressed = compressed.collect();
        Ok(Planner {
            model,
            options,
            analyses,
            sizes,
            rates,
            problem: Problem::new(context, costs)?,
            decisions,
            compressed,
            calls: calls(model),
        })
    }

    /// The graph of the model that came in.
    fn graph(&self) -> &'a Graph {
        &self.model.graph
    }

    /// The plan with the least cost at a price, in bytes for a second; `exact` compresses nothing.
    pub fn cut(&self, price: f64, exact: bool) -> Plan {
        self.choice(price, exact).into()
    }

    /// The same, with what the cut counts.
    pub fn choice(&self, price: f64, exact: bool) -> Choice {
        self.terms(price, true, exact, &BTreeSet::new())
    }

    fn terms(&self, price: f64, products: bool, exact: bool, keep: &BTreeSet<ValueId>) -> Choice {
        let none = BTreeMap::new();
        let compressed = match exact {
            true => &none,
            false => &self.compressed,
        };
        self.problem.cut(&Terms {
            price,
            products,
            once: &self.calls,
            keep,
            compressed,
        })
    }

    /// The plan of a level; without blocks `layers` and `sqrt` are `None`.
    pub fn level(&self, level: Level, exact: bool) -> Option<Plan> {
        let every = match level {
            Level::None => return Some(self.nothing(exact)),
            Level::Cheap => {
                let price = self.rates.elementwise / MOVED_FOR_A_BYTE;
                return Some(self.terms(price, false, exact, &BTreeSet::new()).into());
            }
            Level::Layers => 1,
            Level::Sqrt => self.borders().len().saturating_sub(1).isqrt().max(1),
        };
        let borders = self.borders();
        let keep: BTreeSet<ValueId> = (borders.iter().step_by(every))
            .map(|&border| self.analyses.buffers.root(border))
            .collect();
        (borders.len() > 1).then(|| self.terms(TIE, true, exact, &keep).into())
    }

    /// The tensors between the model's blocks ([`borders`]).
    pub fn borders(&self) -> Vec<ValueId> {
        let Analyses {
            roles, partition, ..
        } = self.analyses;
        borders(&self.model.graph, roles, partition)
    }

    /// The plan that computes nothing again, and compresses what is freed by that alone.
    pub fn nothing(&self, exact: bool) -> Plan {
        let freed = { self.decisions.iter() }.filter(|d| d.reason == Reason::Rewritten && !exact);
        Plan {
            recompute: BTreeSet::new(),
            compress: freed.map(|d| d.activation).collect(),
        }
    }

    /// Plans at falling prices, each once: from the one that takes least time to the one that saves least.
    pub fn frontier(&self, exact: bool) -> Vec<Plan> {
        self.choices(exact).into_iter().map(Plan::from).collect()
    }

    /// The same, with what the cuts count.
    fn choices(&self, exact: bool) -> Vec<Choice> {
        let mut choices: Vec<Choice> = Vec::new();
        for power in PRICES.rev() {
            let price = self.rates.elementwise * STEP.powi(power);
            let choice = self.choice(price, exact);
            if choices.last() != Some(&choice) {
                choices.push(choice);
            }
        }
        choices
    }

    /// The parameters whose gradients a plan makes from compressed tensors.
    pub fn approximated<'p>(&'p self, plan: &'p Plan) -> impl Iterator<Item = &'p str> {
        let decisions = self.decisions.iter().filter(|d| d.reason.is_wanted());
        let decisions = decisions.filter(|d| plan.compress.contains(&d.activation));
        decisions.map(|d| self.model.graph.value(d.parameter).name.as_str())
    }

    /// The options that carry a plan out.
    pub fn options(&self, plan: &Plan) -> Options {
        let graph = &self.model.graph;
        let mut options = self.options.clone();
        let names = { plan.recompute.iter() }.filter_map(|&id| first(graph, id));
        options.recompute = Some(names.map(str::to_owned).collect());
        for decision in self.decisions.iter().filter(|d| d.reason.is_wanted()) {
            let name = graph.value(decision.parameter).name.clone();
            let layer = (options.selection.layers.entry(name)).or_default();
            let rewrite = plan.compress.contains(&decision.activation);
            // A parameter named twice is rewritten where any of its contractions is.
            layer.rewrite = Some(rewrite || layer.rewrite == Some(true) && self.twice(decision));
        }
        options
    }

    /// Whether a parameter has several contractions.
    fn twice(&self, decision: &Decision) -> bool {
        let same = { self.decisions.iter() }.filter(|d| d.parameter == decision.parameter);
        same.count() > 1
    }

    /// The model that a plan makes, but for pins, which hold no bytes.
    fn made(&self, plan: &Plan) -> Result<Model, JobError> {
        let options = Options {
            pin: false,
            ..self.options(plan)
        };
        Ok(carry_out(self.model, &options, self.analyses, true)?
            .ran
            .model)
    }

    /// What a plan comes to, by carrying it out.
    ///
    /// # Errors
    /// [`JobError`] where the rewritten model cannot be analysed.
    pub fn measure(&self, plan: &Plan) -> Result<Point, JobError> {
        point(&self.made(plan)?, &self.options.settings, self.rates)
    }

    /// The tensors that are alive at a plan's peak, by name with their bytes, the largest first.
    ///
    /// # Errors
    /// [`JobError`] where the rewritten model cannot be analysed.
    pub fn dominates(&self, plan: &Plan) -> Result<Vec<(String, i64)>, JobError> {
        let model = self.made(plan)?;
        let graph = &model.graph;
        let shapes = shapes(&model, &self.options.settings).map_err(AnalysisError::from)?;
        let sizes = assumed_sizes(&model, &shapes);
        let lifetimes = Lifetimes::new(graph, &Buffers::new(graph), &sizes, graph.order());
        let alive = lifetimes.live_at(lifetimes.peak(&sizes).1).into_iter();
        let mut alive: Vec<(String, i64)> = alive
            .filter_map(|value| Some((graph.value(value).name.clone(), sizes.of(value)?)))
            .collect();
        alive.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        Ok(alive)
    }

    /// What the model that came in comes to, in the best order found for it.
    ///
    /// # Errors
    /// [`JobError::Graph`] where it has no order.
    pub fn before(&self) -> Result<Point, JobError> {
        let graph = &self.model.graph;
        let schedule = crate::schedule::schedule(graph, &self.analyses.buffers, self.sizes)?;
        Ok(Point {
            peak: schedule.peak,
            saved: saved(&self.analyses.saved, self.sizes),
            seconds: self.problem.costs().step(),
            again_bytes: 0,
            again_flops: 0.0,
        })
    }
}

/// What a rewritten model comes to.
///
/// # Errors
/// [`JobError`] where it cannot be analysed.
pub fn point(model: &Model, settings: &Settings, rates: Rates) -> Result<Point, JobError> {
    let graph = &model.graph;
    let shapes = shapes(model, settings).map_err(AnalysisError::from)?;
    let roles = roles(graph, &settings.hints).map_err(AnalysisError::from)?;
    let (partition, buffers) = (Partition::new(graph, &roles), Buffers::new(graph));
    let sizes = assumed_sizes(model, &shapes);
    let lifetimes = Lifetimes::new(graph, &buffers, &sizes, graph.order());
    let costs = Costs::new(graph, &partition, &shapes, &sizes, rates);
    let copies = graph.order().iter().map(|&id| graph.node(id));
    let copies = copies.filter(|node| is_copy(node) && class(node) != Class::Nothing);
    let made = copies
        .clone()
        .flat_map(|node| node.outputs.iter().flatten())
        .filter(|&&value| !costs.is_inside(value));
    let products = copies.filter(|node| class(node) == Class::Products);
    Ok(Point {
        peak: lifetimes.peak(&sizes).0,
        saved: saved(&saved_activations(graph, &partition, &buffers), &sizes),
        seconds: costs.step(),
        again_bytes: made.filter_map(|&value| sizes.of(value)).sum(),
        again_flops: products.map(|node| costs.operations(node)).sum(),
    })
}

fn saved(saved: &[SavedActivation], sizes: &Sizes) -> i64 {
    let saved = saved.iter();
    saved.filter_map(|s| sizes.of(s.buffer)).sum()
}

/// The seconds that a weight gradient takes less with the compressed form, the compression included.
fn faster(analyses: &Analyses, sizes: &Sizes, rates: &Rates, decision: &Decision) -> f64 {
    let Some(site) = &decision.site else {
        return 0.0;
    };
    let known = |dim| sizes.dim(dim).unwrap_or(0) as f64;
    let tokens = known(&site.tokens);
    let features = site.features as f64;
    let outputs = known(&site.outputs);
    let width = decision.settings.width(site.features).unwrap_or(0) as f64;
    let element = element_bytes(analyses, site) as f64;
    let passes = 1.0 + f64::from(u8::from(decision.settings.init.is_computed()));
    // Several contractions of a tensor share its compression; one is as good a guess as another.
    let sites = analyses.sites.of(site.activation).count().max(1) as f64;
    let compression = passes * tokens * features * element / rates.norms / sites;
    match site.form {
        Form::Weight(_) => {
            let left = 2.0 * tokens * outputs * (features - width) / rates.products;
            left - features * outputs * element / rates.elementwise - compression
        }
        Form::Scale(_) => -compression,
        Form::Reconstructed => -compression - tokens * features * element / rates.elementwise,
    }
}
