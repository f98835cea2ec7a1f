//! `inspect`: where the memory goes, what could be freed, and what keeps it alive.

use super::{Loaded, deliver};
use crate::cli::{InspectArguments, MethodArguments, Select, SelectionArguments};
use crate::report::View;
use crate::report::build::{Analyses, report};
use crate::settings::Settings;
use anyhow::Result;
use velora_graph::analysis::partition::Partition;
use velora_graph::analysis::sites::sites;
use velora_graph::shapes::infer;
use velora_passes::compress::{self, Options};

/// Reports on a training graph; writes no model.
///
/// # Errors
/// Where the file cannot be read, is no training graph, or a report cannot be written.
pub fn run(arguments: &InspectArguments) -> Result<()> {
    let loaded = Loaded::read(&arguments.graph)?;
    let graph = &loaded.graph;
    let shapes = infer(graph, &loaded.context());
    let partition = Partition::new(graph, &loaded.roles);
    let sites = sites(graph, &loaded.roles, &partition);
    let options = Options {
        groups: arguments.groups,
        init: compress::Init::BatchAverage,
        seed: 0,
    };
    let decisions = compress::decide(graph, &sites, &options);
    let found = Analyses {
        graph,
        shapes: &shapes,
        partition: &partition,
        sites: &sites,
        decisions: &decisions,
        settings: &settings(arguments.groups),
    };
    let report = report(&loaded.name, &loaded.sizes, &found);
    deliver(&report, View::Inspected, &arguments.graph, None)
}

/// The defaults of the default verb, but for the groups.
fn settings(groups: i64) -> Settings {
    let method = MethodArguments {
        groups: Some(groups),
        sub_token_size: None,
        init: None,
        scale: None,
        seed: None,
    };
    let selection = SelectionArguments {
        select: Select::Freeable,
        include: vec![],
        exclude: vec![],
        min_bytes: 0,
        plan: None,
        emit_plan: None,
    };
    Settings::new(&method, &selection, None)
}
