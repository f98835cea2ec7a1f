//! One file for each command, and what the ones that analyse a graph share.

pub mod completions;
pub mod inspect;
pub mod man;
pub mod optimize;
pub mod print;

use crate::cli::{GraphArguments, is_stream};
use crate::dims::sizes;
use crate::io::{Input, write_text};
use crate::report::{Report, Style, View, html, inspected, json, optimized};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use velora_graph::analysis::roles::{Hints, Roles, roles};
use velora_graph::ir::Graph;
use velora_graph::onnx::schema::ModelProto;
use velora_graph::shapes;

/// A training graph, ready for the analyses.
struct Loaded {
    /// Everything of the file but the graph.
    shell: ModelProto,
    /// How messages call the file.
    name: String,
    /// The graph.
    graph: Graph,
    /// Sizes of symbols.
    sizes: BTreeMap<Arc<str>, i64>,
    /// What its outputs are.
    roles: Roles,
}

impl Loaded {
    /// Reads a training graph.
    ///
    /// # Errors
    /// Where the file cannot be read, or holds no training graph.
    fn read(arguments: &GraphArguments) -> Result<Loaded> {
        let input = Input::read(&arguments.model, arguments.allow_unknown_fields)?;
        let (mut shell, name) = (input.model, input.name);
        let proto =
            (shell.graph.take()).with_context(|| format!("{name}: the file has no graph"))?;
        let graph = Graph::from_proto(proto).with_context(|| name.clone())?;
        let sizes = sizes(&graph, &arguments.dims).with_context(|| name.clone())?;
        let hints = Hints {
            loss: arguments.loss.clone(),
            gradients: arguments.gradients.iter().cloned().collect(),
        };
        let roles = roles(&graph, &hints).with_context(|| name.clone())?;
        if arguments.verbose {
            eprintln!(
                "velora-opt: read {name}: {} nodes, {} inputs, {} outputs, {} gradients",
                graph.order().len(),
                graph.inputs().len(),
                graph.outputs().len(),
                roles.gradients.len()
            );
        }
        Ok(Loaded {
            shell,
            name,
            graph,
            sizes,
            roles,
        })
    }

    /// What shape inference needs.
    fn context(&self) -> shapes::Context<'_> {
        shapes::Context {
            opsets: &self.shell.opset_import,
            functions: &self.shell.functions,
            sizes: &self.sizes,
        }
    }
}

/// Writes a report to where the arguments say: files, and a table. `taken` is what standard output
/// already went to; the table goes to standard error then, and nowhere where the report itself is
/// on standard output.
fn deliver(
    report: &Report,
    view: View,
    arguments: &GraphArguments,
    taken: Option<&Path>,
) -> Result<()> {
    if let Some(path) = &arguments.json {
        write_text(path, &json(report)?)?;
    }
    if let Some(path) = &arguments.html {
        write_text(path, &html(report, view))?;
    }
    let reports = [&arguments.json, &arguments.html];
    let streamed = reports.into_iter().flatten().any(|path| is_stream(path));
    if arguments.quiet || streamed {
        return Ok(());
    }
    let render = |style| match view {
        View::Optimized => optimized(report, style),
        View::Inspected => inspected(report, style),
    };
    if taken.is_some_and(is_stream) {
        eprint!(
            "{}",
            render(Style::of(&std::io::stderr(), arguments.verbose))
        );
        return Ok(());
    }
    crate::io::print(&render(Style::of(&std::io::stdout(), arguments.verbose)))
}
