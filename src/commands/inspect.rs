//! `inspect`: where the memory goes, what could be freed, and what keeps it alive.

use super::{Loaded, deliver, warn_of_doubtful};
use crate::cli::InspectArguments;
use crate::report::View;
use crate::report::build::{Sides, report};
use crate::settings::inspection;
use anyhow::{Context, Result};
use velora_graph::analysis::Analyses;
use velora_passes::manager::Checks;
use velora_passes::pipeline::{Options, optimise};

/// Reports on a training graph; writes no model. What could be freed is found by doing it.
///
/// # Errors
/// Where the file cannot be read, is no training graph, or a report cannot be written.
pub fn run(arguments: &InspectArguments) -> Result<()> {
    let loaded = Loaded::read(&arguments.graph.source)?;
    let name = &loaded.name;
    let options = Options {
        settings: loaded.settings.clone(),
        selection: inspection(arguments.groups),
        inline: false,
        hoist: true,
        // A pin holds no bytes of its own.
        pin: false,
        checks: Checks::default(),
    };
    let outcome = optimise(&loaded.model, &options).with_context(|| name.clone())?;
    warn_of_doubtful(
        &arguments.graph.source,
        &loaded.model,
        &outcome.before.roles,
    );
    let after =
        Analyses::new(&outcome.ran.model, &loaded.settings).with_context(|| name.clone())?;
    let sides = Sides {
        before: (&loaded.model, &outcome.before),
        after: (&outcome.ran.model, &after),
        decisions: &outcome.decisions,
        hoists: &outcome.hoists,
        selection: &options.selection,
    };
    let report = report(name, &loaded.settings.sizes, &sides).with_context(|| name.clone())?;
    deliver(&report, View::Inspected, &arguments.graph, None)
}
