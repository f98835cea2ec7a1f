//! What a training graph does: roles of outputs, forward and backward, buffers, saved activations,
//! weight-gradient contractions, work that either half could do, and lifetimes over a schedule.

pub mod buffers;
pub mod hoist;
pub mod lifetimes;
mod min_cut;
pub mod order;
pub mod partition;
pub mod recompute;
pub mod roles;
pub mod saved;
pub mod sites;

use crate::dim::Dim;
use crate::ir::{Graph, Model, NodeId};
use crate::shapes::{Context, Declarations, ShapeErrors, Shapes, infer};
use buffers::Buffers;
use hoist::Move;
use partition::Partition;
use roles::{Hints, RoleError, Roles, roles};
use saved::{SavedActivation, saved_activations};
use sites::{Sites, sites};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;

/// What the user said about a model.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Which outputs are what.
    pub hints: Hints,
    /// Sizes of symbols.
    pub sizes: BTreeMap<Arc<str>, i64>,
}

/// Why a model could not be analysed.
#[derive(Debug, Error)]
pub enum AnalysisError {
    /// The outputs are not those of a training graph.
    #[error(transparent)]
    Roles(#[from] RoleError),
    /// Shapes contradict each other.
    #[error(transparent)]
    Shapes(#[from] ShapeErrors),
}

/// All analyses of one model.
#[derive(Clone, Debug)]
pub struct Analyses {
    /// The version of the standard operator set; 1 where none is imported.
    pub opset: i64,
    /// What each output is.
    pub roles: Roles,
    /// The types of all values.
    pub shapes: Shapes,
    /// Forward and backward.
    pub partition: Partition,
    /// Which values share bytes.
    pub buffers: Buffers,
    /// What lives from forward into backward.
    pub saved: Vec<SavedActivation>,
    /// Weight-gradient contractions.
    pub sites: Sites,
}

impl Analyses {
    /// Analyses a model.
    ///
    /// # Errors
    /// [`AnalysisError`] where the outputs are not those of a training graph, or where shapes
    /// contradict each other.
    pub fn new(model: &Model, settings: &Settings) -> Result<Self, AnalysisError> {
        let graph = &model.graph;
        let shapes = infer(
            graph,
            &Context {
                opsets: &model.shell.opset_import,
                functions: &model.shell.functions,
                sizes: &settings.sizes,
            },
        )?;
        let roles = roles(graph, &settings.hints)?;
        let partition = Partition::new(graph, &roles);
        let buffers = Buffers::new(graph);
        let saved = saved_activations(graph, &partition, &buffers);
        let sites = sites(graph, &roles, &partition, &shapes, &buffers);
        Ok(Analyses {
            opset: model.opset("").unwrap_or(1),
            roles,
            shapes,
            partition,
            buffers,
            saved,
            sites,
        })
    }

    /// What they say once forward nodes are computed again in the backward half, as far as anything there needs
    /// what they make; `graph` is the one that they are of.
    pub fn recomputed(&self, graph: &Graph, nodes: &BTreeSet<NodeId>) -> Self {
        let needed = recompute::needed(graph, &self.partition, &self.buffers, nodes);
        let partition = self.partition.recomputed(needed);
        Analyses {
            saved: saved_activations(graph, &partition, &self.buffers),
            partition,
            ..self.clone()
        }
    }

    /// What they say once work of the backward half is done in the forward half; `graph` is the one
    /// that they are of.
    pub fn hoisted<'m>(&self, graph: &Graph, moves: impl IntoIterator<Item = &'m Move>) -> Self {
        let partition = self.partition.hoisted(moves);
        Analyses {
            saved: saved_activations(graph, &partition, &self.buffers),
            partition,
            ..self.clone()
        }
    }
}

/// The symbols in the shapes of a graph's inputs: what `--dim` can give a size to.
pub fn symbols(graph: &Graph) -> BTreeSet<Arc<str>> {
    let none = BTreeMap::new();
    let mut declarations = Declarations::new(&none);
    let infos = graph.input_infos().iter();
    let shapes = infos.filter_map(|info| declarations.read(info).shape);
    shapes.flatten().flat_map(|d: Dim| d.symbols()).collect()
}
