//! Runs passes: each returns a patch, the manager applies it.
//!
//! A pass says which [`Property`] of the model it requires and which it ensures; a change drops every
//! property that the pass does not say it ensures or keeps. With [`Checks::verify_each`] the manager
//! verifies the model after each change, and that an empty patch came with no change and any other
//! with one. Messages name the pass and those before it.

use crate::adapt::AdaptError;
use prost::Message;
use std::time::{Duration, Instant};
use thiserror::Error;
use velora_graph::analysis::AnalysisError;
use velora_graph::ir::{GraphError, Model, Patch};
use velora_graph::shapes::ShapeErrors;
use velora_graph::text::ParseError;

/// What passes rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// No node or constant that a rewrite left without readers.
    NoDeadCode,
    /// Nodes are listed in the order with the lowest peak found.
    Scheduled,
}

/// A step of the pipeline.
pub trait Pass {
    /// Its name on the command line and in messages.
    fn name(&self) -> &'static str;
    /// What must hold before.
    fn requires(&self) -> &'static [Property] {
        &[]
    }
    /// What holds afterwards.
    fn ensures(&self) -> &'static [Property] {
        &[]
    }
    /// What its changes leave as it was.
    fn keeps(&self) -> &'static [Property] {
        &[]
    }
    /// The patch; an empty one changes nothing.
    ///
    /// # Errors
    /// [`PassError`] where the model cannot be rewritten.
    fn run(&self, model: &Model) -> Result<Patch, PassError>;
}

/// What is checked and shown on the way.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// Verify the model after each pass.
    pub verify_each: bool,
    /// Keep the model as it is after the pass of that name.
    pub keep_after: Option<String>,
}

/// What happened.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The final model.
    pub model: Model,
    /// Each pass with the reason of its patch, where it changed something, and its time.
    pub passes: Vec<(&'static str, Option<String>, Duration)>,
    /// The model after the pass asked for.
    pub kept: Option<Model>,
}

/// Why a pass stopped.
#[derive(Debug, Error)]
pub enum PassError {
    /// The graph cannot be ordered or indexed.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Shapes contradict each other.
    #[error(transparent)]
    Shapes(#[from] ShapeErrors),
    /// The model cannot be analysed any more.
    #[error(transparent)]
    Analysis(#[from] AnalysisError),
    /// A weight cannot have an adapter.
    #[error(transparent)]
    Adapt(#[from] AdaptError),
    /// The text of an operator's body is broken.
    #[error("the body of an operator of ours does not parse: {0}")]
    Body(#[from] ParseError),
}

/// Why the pipeline stopped.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// A pass stopped.
    #[error("pass {pass}{}", after(.before))]
    Pass {
        /// The pass.
        pass: &'static str,
        /// Those that had run.
        before: Vec<&'static str>,
        /// Why.
        source: PassError,
    },
    /// A patch makes no graph.
    #[error("pass {pass} left no valid graph{}", after(.before))]
    Apply {
        /// The pass.
        pass: &'static str,
        /// Those that had run.
        before: Vec<&'static str>,
        /// What is wrong with the graph.
        source: GraphError,
    },
    /// A pass ran before what it needs.
    #[error("pass {pass} requires {missing:?}, which does not hold{}", after(.before))]
    Requires {
        /// The pass.
        pass: &'static str,
        /// Those that had run.
        before: Vec<&'static str>,
        /// The property.
        missing: Property,
    },
    /// A pass lied about what it did.
    #[error("pass {pass} returned {} patch, but the model {}{}",
            if *.empty { "an empty" } else { "a non-empty" },
            if *.empty { "changed" } else { "did not change" }, after(.before))]
    Untrue {
        /// The pass.
        pass: &'static str,
        /// Those that had run.
        before: Vec<&'static str>,
        /// Whether the patch was empty.
        empty: bool,
    },
    /// The model is broken after a pass.
    #[error("pass {pass} broke the model{}:\n{violations}", after(.before))]
    Invalid {
        /// The pass.
        pass: &'static str,
        /// Those that had run.
        before: Vec<&'static str>,
        /// The listing with the errors in it.
        violations: String,
    },
}

fn after(before: &[&'static str]) -> String {
    match before {
        [] => String::new(),
        names => format!(" (after {})", names.join(", ")),
    }
}

/// Runs passes in order.
///
/// # Errors
/// [`PipelineError`] at the first pass that fails or breaks what it must keep.
pub fn run(model: Model, passes: &[&dyn Pass], checks: &Checks) -> Result<Ran, PipelineError> {
    let mut ran = Ran {
        model,
        passes: Vec::new(),
        kept: None,
    };
    let mut held: Vec<Property> = Vec::new();
    for pass in passes {
        let name = pass.name();
        let before = || ran.passes.iter().map(|p| p.0).collect::<Vec<_>>();
        if let Some(&missing) = pass.requires().iter().find(|p| !held.contains(p)) {
            return Err(PipelineError::Requires {
                pass: name,
                before: before(),
                missing,
            });
        }
        let start = Instant::now();
        let patch = pass.run(&ran.model).map_err(|source| PipelineError::Pass {
            pass: name,
            before: before(),
            source,
        })?;
        let changed = !patch.is_empty();
        let fingerprint = checks
            .verify_each
            .then(|| ran.model.to_proto().encode_to_vec());
        if changed || checks.verify_each {
            let next = ran
                .model
                .apply(&patch)
                .map_err(|source| PipelineError::Apply {
                    pass: name,
                    before: before(),
                    source,
                })?;
            if let Some(old) = fingerprint {
                let differs = next.to_proto().encode_to_vec() != old;
                if differs != changed {
                    return Err(PipelineError::Untrue {
                        pass: name,
                        before: before(),
                        empty: !changed,
                    });
                }
                verify(&next, name, before)?;
            }
            ran.model = next;
        }
        if changed {
            held.retain(|p| pass.keeps().contains(p));
        }
        held.extend(pass.ensures());
        let reason = changed.then(|| patch.reason.clone());
        ran.passes.push((name, reason, start.elapsed()));
        if checks.keep_after.as_deref() == Some(name) {
            ran.kept = Some(ran.model.clone());
        }
    }
    Ok(ran)
}

fn verify(
    model: &Model,
    pass: &'static str,
    before: impl Fn() -> Vec<&'static str>,
) -> Result<(), PipelineError> {
    let checked = velora_graph::verify::verify(&model.shell, &model.graph);
    checked.map_err(|violations| PipelineError::Invalid {
        pass,
        before: before(),
        violations: violations.listing(&model.to_proto()),
    })
}
