//! The main job: read, decide, rewrite, write, report.

use crate::cli::{Arguments, Init};
use anyhow::{Context, Result, bail};
use velora_graph::analysis::partition::Partition;
use velora_graph::analysis::roles::{Hints, roles};
use velora_graph::analysis::sites::sites;
use velora_graph::ir::Graph;
use velora_graph::onnx::read::{UnknownFields, read};
use velora_graph::onnx::schema::ModelProto;
use velora_graph::onnx::write::write;
use velora_passes::compress::{self, Decision, Options};

/// Below this, `ReduceSum` takes its axes as an attribute, which the rewrite does not write.
const OLDEST_OPSET: i64 = 13;

/// Rewrites `arguments.model` into `arguments.output`.
///
/// # Errors
/// Where the file cannot be read, is no training graph, or the output cannot be written; nothing is
/// written then.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut model = read(&arguments.model, UnknownFields::Refuse)?;
    let name = arguments.model.display();
    let opset = standard_opset(&model);
    if opset.is_none_or(|version| version < OLDEST_OPSET) {
        bail!(
            "{name}: expected the standard operator set at version {OLDEST_OPSET} or newer, found {}; \
             export the model again with a newer opset",
            opset.map_or("none".to_owned(), |v| v.to_string())
        );
    }
    if !same_folder(arguments) && has_external_data(&model) {
        bail!(
            "{name}: the weights are in other files, found by their path from the model's folder; \
             write the output into that folder"
        );
    }
    let proto = model
        .graph
        .take()
        .with_context(|| format!("{name}: the file has no graph"))?;
    let graph = Graph::from_proto(proto).with_context(|| name.to_string())?;
    let hints = Hints {
        loss: arguments.loss.clone(),
        gradients: arguments.gradients.iter().cloned().collect(),
    };
    let roles = roles(&graph, &hints).with_context(|| name.to_string())?;
    let partition = Partition::new(&graph, &roles);
    let found = sites(&graph, &roles, &partition);
    let options = Options {
        groups: arguments.groups,
        init: match arguments.init {
            Init::BatchAverage => compress::Init::BatchAverage,
            Init::Random => compress::Init::Random,
            Init::None => compress::Init::None,
        },
        seed: arguments.seed,
    };
    let decisions = compress::decide(&graph, &found, &options);
    model.graph = Some(compress::rewrite(&graph, &decisions, &options));
    write(&model, &arguments.output)?;
    if !arguments.quiet {
        print!("{}", table(&graph, &decisions));
    }
    Ok(())
}

fn standard_opset(model: &ModelProto) -> Option<i64> {
    let standard = model
        .opset_import
        .iter()
        .find(|o| matches!(o.domain(), "" | "ai.onnx"));
    standard.map(|o| o.version())
}

fn same_folder(arguments: &Arguments) -> bool {
    let folder = |path: &std::path::Path| {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        parent
            .unwrap_or(std::path::Path::new("."))
            .canonicalize()
            .ok()
    };
    folder(&arguments.model) == folder(&arguments.output)
}

fn has_external_data(model: &ModelProto) -> bool {
    let tensors = model.graph.iter().flat_map(|g| &g.initializer);
    tensors.into_iter().any(|t| !t.external_data.is_empty())
}

/// One line a layer, and a sum.
fn table(graph: &Graph, decisions: &[Decision]) -> String {
    let row = |d: &Decision| {
        let name = |value| graph.value(value).name.clone();
        let shape = format!("{}x{}", d.site.features, d.site.outputs);
        [
            name(d.site.parameter),
            shape,
            name(d.site.activation),
            d.reason.to_owned(),
            d.message.clone(),
        ]
    };
    let mut rows = vec![["parameter", "D x O", "saved input", "decision", ""].map(str::to_owned)];
    rows.extend(decisions.iter().map(row));
    let width = |column: usize| {
        rows.iter()
            .map(|r| r[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..4).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:width$}  ");
        }
        line += &row[4];
        text += line.trim_end();
        text.push('\n');
    }
    let rewritten = decisions.iter().filter(|d| d.groups.is_some()).count();
    match rewritten {
        0 => text += "no linear layer's saved input can be freed: the graph is written unchanged\n",
        _ => {
            text += &format!(
                "{rewritten} of {} weight gradients rewritten\n",
                decisions.len()
            )
        }
    }
    text
}
